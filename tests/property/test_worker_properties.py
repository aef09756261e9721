"""Whatever a worker, its server and its administrator do in whatever order, its history stays true to its rules."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.provider_bridge.domain import worker_acts as acts
from services.provider_bridge.domain.worker import Removed, Unknown, Worker, WorkerState
from services.provider_bridge.domain.worker_acts import WorkerAct
from services.provider_bridge.domain.worker_matching import gpus_of, labels_in, labels_match, suits
from services.provider_bridge.worker_stream import WORKER
from shared.contracts import worker as events
from shared.contracts.job import Event
from shared.contracts.offers import Offer
from shared.problems import Rejected
from tests.support.contract_structs import IDS, any_of
from tests.support.depth import examples

T0 = datetime(2026, 11, 22, tzinfo=UTC)

moments = st.integers(0, 1000).map(lambda seconds: T0 + timedelta(seconds=seconds))
ids = st.sampled_from(IDS[:2])
digests = st.sampled_from(["a" * 64, "b" * 64])
names = st.sampled_from(["one", "two"])
labels = st.dictionaries(st.sampled_from(["site", "gpu"]), names, max_size=2)
CREATE = st.builds(
    acts.Create,
    name=names,
    worker_type=st.sampled_from(["persistent", "ephemeral"]),
    labels=labels,
    token_sha256=digests,
    price_micro_usd_per_hour=st.integers(0, 5),
    at=moments,
)
REGISTER = st.builds(
    acts.Register,
    name=names,
    gpu_info=st.sampled_from([{}, {"name": "A100", "count": 2}]),
    labels=labels,
    provider=st.none(),
    has_job=st.none() | ids.map(str),
    has_attempt=st.none() | ids,
    at=moments,
)
OTHERS = st.one_of(
    REGISTER,
    st.builds(acts.RotateToken, token_sha256=digests, at=moments),
    st.builds(acts.Drain, at=moments),
    st.builds(acts.Resume, at=moments),
    st.builds(acts.Remove, force=st.booleans(), at=moments),
    st.builds(acts.Heard, at=moments),
    st.builds(acts.Missed, last_heard_at=moments, at=moments),
    *[st.builds(acts.Assign, attempt_id=ids, job_id=ids, epoch=st.integers(1, 3), at=moments)] * 3,
    st.builds(acts.Begin, attempt_id=ids, at=moments),
    st.builds(acts.AskCancel, attempt_id=ids, grace_s=st.just(30.0), at=moments),
    st.builds(acts.Release, attempt_id=ids, outcome=st.sampled_from(["exited", "lost"]), ended_at=moments, at=moments),
)
commands = st.tuples(CREATE, REGISTER, st.lists(CREATE | OTHERS, max_size=14)).map(
    lambda drawn: [drawn[0], drawn[1], *drawn[2]]
)


def lived(given_commands: Sequence[WorkerAct]) -> list[tuple[WorkerState, Event]]:
    """Every event, with the state that it came upon."""
    state, history = WORKER.initial, list[tuple[WorkerState, Event]]()
    for command in given_commands:
        try:
            decided = WORKER.decide(state, command)
        except Rejected:
            continue
        for event in decided:
            history.append((state, event))
            state = WORKER.evolve(state, event)
    return history


@examples(200)
@given(commands)
def test_a_worker_never_has_two_runs(given_commands: list[WorkerAct]) -> None:
    held: events.WorkerAssigned | None = None
    for _, event in lived(given_commands):
        if isinstance(event, events.WorkerAssigned):
            assert held is None
            held = event
        elif isinstance(event, events.WorkerReleased):
            assert held is not None
            assert held.attempt_id == event.attempt_id
            held = None
        elif isinstance(event, events.WorkerRunBegun | events.WorkerRunCancelAsked):
            assert held is not None
            assert held.attempt_id == event.attempt_id


@examples(200)
@given(commands)
def test_runs_go_only_to_a_worker_that_is_online_not_draining_and_not_spent(given_commands: list[WorkerAct]) -> None:
    for before, event in lived(given_commands):
        if isinstance(event, events.WorkerAssigned):
            assert isinstance(before, Worker)
            assert before.online
            assert not before.draining
            assert before.status == "idle"
            assert before.worker_type == "persistent" or before.runs_had == 0


@examples(200)
@given(commands)
def test_a_removed_worker_has_no_run_and_does_nothing_more(given_commands: list[WorkerAct]) -> None:
    history = lived(given_commands)
    ends = [number for number, (_, event) in enumerate(history) if isinstance(event, events.WorkerRemoved)]
    assert ends in ([], [len(history) - 1])
    if ends:
        before = history[-1][0]
        assert isinstance(before, Worker)
        assert before.run is None


@examples(100)
@given(commands, OTHERS)
def test_nothing_but_being_made_moves_a_worker_that_is_unknown_or_removed(
    given_commands: list[WorkerAct], act: WorkerAct
) -> None:
    with pytest.raises(Rejected, match="worker_not_found"):
        WORKER.decide(Unknown(), act)
    gone = Removed(name="x")
    if not isinstance(act, acts.Remove):
        with pytest.raises(Rejected, match="worker_not_found"):
            WORKER.decide(gone, act)
    for _, event in lived(given_commands):
        assert WORKER.evolve(gone, event) == gone


@examples(100)
@given(commands)
def test_a_worker_that_comes_back_without_its_begun_run_has_lost_it(given_commands: list[WorkerAct]) -> None:
    state: WorkerState = WORKER.initial
    for _, event in lived(given_commands):
        state = WORKER.evolve(state, event)
    if not isinstance(state, Worker):
        return
    back = acts.Register(name="one", gpu_info={}, labels={}, provider=None, at=T0)
    dropped = [event for event in WORKER.decide(state, back) if isinstance(event, events.WorkerReleased)]
    assert bool(dropped) == (state.run is not None and state.run.begun)
    assert all(event.outcome == "dropped" for event in dropped)


# ---- matching --------------------------------------------------------------------------------------------------------


def an_offer(**changes: object) -> Offer:
    """A worker's offer that says only what matters."""
    plain = {
        "provider": "worker",
        "hardware": str(IDS[0]),
        "gpu": "NVIDIA A100-SXM4-80GB",
        "gpu_count": 2,
        "vram_gb": 80,
        "price_micro_usd_per_hour": 0,
        "labels": {"site": "lab-3", "team": "art"},
    }
    return Offer(**{**plain, **changes})  # pyright: ignore[reportArgumentType] - one test value for many fields


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (an_offer(), True),
        (an_offer(hardware=str(IDS[1])), False),
        (an_offer(hardware="any worker", gpu="*a100*", labels={}), True),
        (an_offer(hardware="any worker", gpu="*h100*", labels={}), False),
        (an_offer(hardware="site=lab-*", gpu="", gpu_count=0, vram_gb=0, labels={}), True),
        (an_offer(hardware="site=lab-*,team=text", gpu="", gpu_count=0, vram_gb=0, labels={}), False),
        (an_offer(hardware="", gpu="", labels={"floor": "*"}), False),
        (an_offer(hardware="", gpu="", gpu_count=4, labels={}), False),
        (an_offer(hardware="", gpu="", vram_gb=81, labels={}), False),
        (None, True),
    ],
)
def test_a_worker_is_chosen_by_its_id_or_by_labels_gpu_count_and_memory(asked: Offer | None, fits: bool) -> None:  # noqa: FBT001 - a table
    assert suits(an_offer(), asked) == fits


def test_a_dearer_worker_than_was_agreed_upon_is_not_taken() -> None:
    asked = an_offer(hardware="any worker", gpu="", labels={}, price_micro_usd_per_hour=5)
    assert suits(an_offer(price_micro_usd_per_hour=5), asked)
    assert not suits(an_offer(price_micro_usd_per_hour=6), asked)


@pytest.mark.parametrize(
    ("told", "name", "count", "vram_gb"),
    [
        ({}, "", 0, 0),
        ({"name": "CPU", "count": 0}, "", 0, 0),
        ({"name": "RTX 4090", "vram_gb": 23.99}, "RTX 4090", 1, 24),
        ({"gpu_name": "L40S", "gpu_count": 2, "memory_gb": 48}, "L40S", 2, 48),
        ({"gpus": [{"name": "A", "vram_gb": 80}, {"name": "B", "vram_gb": 40}]}, "A", 2, 40),
        ({"gpus": "none", "name": 7, "count": "many"}, "", 0, 0),
    ],
)
def test_what_a_worker_says_of_its_gpus_is_read_leniently(
    told: dict[str, object], name: str, count: int, vram_gb: int
) -> None:
    found = gpus_of(told)
    assert (found.name, found.count, found.vram_gb) == (name, count, vram_gb)


@examples(50)
@given(any_of(events.WorkerRegistered))
def test_nothing_that_a_worker_says_of_its_gpus_breaks_the_reading(said: events.WorkerRegistered) -> None:
    assert gpus_of(said.gpu_info).count >= 0


@examples(50)
@given(labels)
def test_labels_match_themselves_and_stars_match_all(of_worker: dict[str, str]) -> None:
    assert labels_match(of_worker, of_worker)
    assert labels_match(dict.fromkeys(of_worker, "*"), of_worker)
    assert labels_in(",".join(f"{name}={value}" for name, value in of_worker.items())) == of_worker
    assert not labels_match({**of_worker, "elsewhere": "*"}, of_worker)
