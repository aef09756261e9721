"""The road of a job: which fact leads to which request."""

from typing import Any
from uuid import uuid4

import msgspec
import pytest

from services.scheduler.domain.job_commands import (
    CompleteDelivery,
    Place,
    RecordAttemptCancelled,
    RecordAttemptFailed,
    RecordAttemptStarted,
    RecordCheckpoint,
    RecordDatasetsPacked,
    RecordFundsReserved,
    RecordPreparationRefused,
    RecordTrainingFinished,
)
from services.scheduler.domain.job_process import (
    RETRY_LATER,
    Ask,
    Keep,
    Outgoing,
    answered,
    react,
    refused,
    share,
    told,
)
from services.scheduler.domain.job_state import FUNDS_RESERVED
from services.scheduler.domain.placement import KnownProvider, Market
from services.scheduler.inbound.subscriptions import SHARES
from shared.contracts.account import FundsRefused, FundsReserved, ReserveFunds, SettleJob
from shared.contracts.artifact import ConfirmArtifacts, DatasetsPacked, DatasetsRefused, PackDatasets
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCheckpointSaved,
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    AttemptSucceeded,
    CancelAttempt,
    RequestAttempt,
)
from shared.contracts.job import (
    Command,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDatasetsPacked,
    JobFailed,
    JobLateFact,
    JobPlaced,
    PackedDataset,
)
from shared.contracts.offers import HardwareRequest, Offer
from shared.contracts.subjects import DURABLES
from shared.contracts.training.spec import planned_steps
from tests.unit.scheduler.job_samples import (
    ATTEMPT,
    CANCEL_REQUESTED,
    FUNDED,
    JOB_ID,
    QUEUED,
    STARTED,
    T0,
    checkpoint,
    dispatched,
    finished,
    queued,
    running,
    submitted,
)

TAR = PackedDataset(dataset_id="digits", sha256="ab", size_bytes=1, file_count=1)


OFFER = Offer(
    provider="runpod",
    hardware="h100",
    gpu="H100",
    gpu_count=1,
    vram_gb=80,
    price_micro_usd_per_hour=2_000_000,
    region="eu",
)
MARKET = Market(providers=(KnownProvider(name="runpod", offers=(OFFER,)),))


def following(event: Event, *past: Event) -> list[Outgoing]:
    return list(react(JOB_ID, told([*past, event]), event, stream_id=ATTEMPT, at=T0, market=MARKET))


def asked(event: Event, *past: Event) -> tuple[str, Command, str]:
    (ask,) = following(event, *past)
    assert isinstance(ask, Ask)
    return ask.owner, ask.command, ask.purpose


def kept(event: Event) -> object:
    (keep,) = following(event, *running())
    assert isinstance(keep, Keep)
    return keep.command


def test_a_submitted_job_reserves_its_funds_before_its_data_is_packed() -> None:
    event = submitted()
    reserve = ReserveFunds(job_id=JOB_ID, owner="alice", provider="local", max_train_steps=100)
    assert asked(event) == ("billing", reserve, "reserve")
    pack = PackDatasets(job_id=JOB_ID, datasets=event.datasets)
    assert asked(FUNDED, event) == ("storage", pack, "pack")


def test_a_job_without_datasets_has_nothing_packed() -> None:
    assert following(FUNDED, submitted(datasets=False)) == []


@pytest.mark.parametrize(("event", "past"), [(submitted(), []), (FUNDED, [submitted()]), (dispatched(), queued())])
def test_nothing_is_begun_for_a_job_that_has_ended_since(event: Event, past: list[Event]) -> None:
    """A parked request may be replayed long after; what it reserved or started would never be given back."""
    end = JobCancelled(cancelled_at=T0, reason="")
    assert following(event, *past) != []
    assert react(JOB_ID, told([*past, event], [end]), event, stream_id=ATTEMPT, at=T0, market=MARKET) == []


def test_no_run_is_asked_for_when_the_job_was_to_end_since() -> None:
    """A dispatch that is handled late shows the cancel already: the cancel alone is sent."""
    event = dispatched()
    assert (
        react(JOB_ID, told([*queued(), event], [CANCEL_REQUESTED]), event, stream_id=ATTEMPT, at=T0, market=MARKET)
        == []
    )
    owner, command, _ = asked(CANCEL_REQUESTED, *queued(), event)
    assert (owner, command) == (
        "provider_bridge",
        CancelAttempt(attempt_id=ATTEMPT, reason=CANCEL_REQUESTED.reason, job_id=JOB_ID),
    )


def test_each_owner_is_asked_its_own_share_and_what_is_kept_waits_for_none_of_them() -> None:
    reserve = Ask(owner="billing", command=SettleJob(job_id=JOB_ID), purpose="settle")
    cancel = Ask(owner="provider_bridge", command=CancelAttempt(attempt_id=ATTEMPT, reason=""), purpose="cancel")
    keep = Keep(command=RecordAttemptCancelled(attempt_id=ATTEMPT, at=T0))
    everything: list[Outgoing] = [reserve, cancel, keep]
    shares = [share(everything, owner) for owner in ("storage", "billing", "provider_bridge", None)]
    assert shares == [[], [reserve], [cancel], [keep]]


def test_every_owner_that_is_asked_has_a_durable_that_reads_what_leads_to_asking() -> None:
    """The asks below stand for every owner of the process; facts of others are kept by the share of nobody."""
    asking: list[tuple[Event, list[Event]]] = [
        (submitted(), []),
        (FUNDED, [submitted()]),
        (dispatched(), queued()),
        (CANCEL_REQUESTED, running()),
        (finished(), running()),
    ]
    readers = {owner: durable for durable, owner in SHARES.items()}
    for event, past in asking:
        owner, _, _ = asked(event, *past)
        assert readers[owner].categories == ("job",)
    assert set(readers[None].categories) == {"attempt", "dataset", "account"}
    assert set(SHARES) <= set(DURABLES)


def test_a_dispatched_job_asks_for_a_run_of_everything_it_was_prepared_with() -> None:
    event = dispatched(number=2, resume=checkpoint(50))
    order = submitted()
    owner, command, _ = asked(event, order, JobDatasetsPacked(datasets=[TAR]), FUNDED, QUEUED)
    assert owner == "provider_bridge"
    assert command == RequestAttempt(
        attempt_id=ATTEMPT,
        job_id=JOB_ID,
        attempt_number=2,
        provider="local",
        config=order.config,
        dataloader=order.dataloader,
        datasets=[TAR],
        resume=checkpoint(50),
        price_micro_usd_per_hour=3600,
        user_id="alice",
    )


def test_a_job_that_may_run_anywhere_is_placed_on_record_before_its_run_is_asked_for() -> None:
    request = HardwareRequest(min_vram_gb=48, max_run_s=3600)
    anywhere = msgspec.structs.replace(submitted(), provider="auto", requirements=request)
    past = [anywhere, *queued()[1:]]
    (reserve,) = following(anywhere)
    assert isinstance(reserve, Ask)
    assert isinstance(reserve.command, ReserveFunds)
    assert reserve.command.price_micro_usd_per_hour == OFFER.price_micro_usd_per_hour
    (keep,) = following(dispatched(), *past)
    assert isinstance(keep, Keep)
    assert (keep.owner, type(keep.command)) == ("provider_bridge", Place)
    placed = JobPlaced(attempt_id=ATTEMPT, offer=OFFER, reason="cheapest", considered=[], placed_at=T0)
    _, command, _ = asked(placed, *past, dispatched())
    assert isinstance(command, RequestAttempt)
    told_ = (command.provider, command.offer, command.user_id, command.max_run_s)
    assert told_ == ("runpod", OFFER, anywhere.user_id, 3600)


def test_a_job_that_nothing_fits_waits_and_says_what_it_lacks() -> None:
    too_much = msgspec.structs.replace(submitted(), provider="auto", requirements=HardwareRequest(min_vram_gb=640))
    (keep,) = following(dispatched(), too_much, *queued()[1:])
    assert isinstance(keep, Keep)
    assert isinstance(keep.command, RecordAttemptFailed)
    assert keep.command.kind == "no_offer"
    assert "less than 640" in keep.command.message


def test_after_no_capacity_the_place_that_had_none_is_not_asked_again() -> None:
    anywhere = msgspec.structs.replace(submitted(), provider="auto")
    placed = JobPlaced(attempt_id=ATTEMPT, offer=OFFER, reason="cheapest", considered=[], placed_at=T0)
    full = JobAttemptFailed(attempt_id=ATTEMPT, kind="no_capacity", message="full", advice=None, failed_at=T0)
    (keep,) = following(dispatched(), anywhere, *queued()[1:], dispatched(), placed, full)
    assert isinstance(keep, Keep)
    assert isinstance(keep.command, RecordAttemptFailed)
    assert "no capacity a moment ago" in keep.command.message


def test_a_cancel_request_cancels_the_attempt_that_holds_the_slot() -> None:
    owner, command, _ = asked(CANCEL_REQUESTED, *running())
    assert owner == "provider_bridge"
    assert command == CancelAttempt(attempt_id=ATTEMPT, reason="asked by the user", job_id=JOB_ID)


def test_finished_training_asks_storage_what_arrived() -> None:
    owner, command, _ = asked(finished(), *running())
    assert owner == "storage"
    assert isinstance(command, ConfirmArtifacts)


@pytest.mark.parametrize(
    "end",
    [
        JobCompleted(completed_at=T0, delivery="delivered", missing=[]),
        JobFailed(failed_at=T0, kind="lost", message="", advice=None),
        JobCancelled(cancelled_at=T0, reason=""),
    ],
)
def test_every_end_of_a_job_is_settled(end: Event) -> None:
    assert asked(end, *running()) == ("billing", SettleJob(job_id=JOB_ID), "settle")


def test_money_set_aside_after_the_end_is_given_back() -> None:
    """The request to reserve was on its way when the job was cancelled: the settlement of the end found nothing."""
    late = JobLateFact(fact=FUNDS_RESERVED, attempt_id=None, at=T0)
    assert asked(late, *running()) == ("billing", SettleJob(job_id=JOB_ID), "settle")
    assert following(JobLateFact(fact="attempt started", attempt_id=ATTEMPT, at=T0), *running()) == []


@pytest.mark.parametrize("event", [QUEUED, STARTED, JobCancelRequested(requested_at=T0, reason="")])
def test_events_that_need_nothing_lead_to_nothing(event: Event) -> None:
    assert following(event) == []


FACTS: list[tuple[Event, object]] = [
    (DatasetsPacked(job_id=JOB_ID, datasets=[TAR], packed_at=T0), RecordDatasetsPacked(datasets=[TAR], at=T0)),
    (
        DatasetsRefused(job_id=JOB_ID, dataset_id="digits", message="no pictures", advice="add some", refused_at=T0),
        RecordPreparationRefused(kind="dataset_refused", message="digits: no pictures", advice="add some", at=T0),
    ),
    (
        FundsReserved(job_id=JOB_ID, amount_micro_usd=7, price_micro_usd_per_hour=3600, postings=[], reserved_at=T0),
        RecordFundsReserved(reserved_micro_usd=7, price_micro_usd_per_hour=3600, at=T0),
    ),
    (
        FundsRefused(job_id=JOB_ID, asked_micro_usd=9, available_micro_usd=0, message="too much", refused_at=T0),
        RecordPreparationRefused(kind="funds_refused", message="too much", advice=None, at=T0),
    ),
    (AttemptStarted(started_at=T0, device="cpu"), RecordAttemptStarted(attempt_id=ATTEMPT, at=T0)),
    (
        AttemptCheckpointSaved(checkpoint=checkpoint(50), saved_at=T0),
        RecordCheckpoint(attempt_id=ATTEMPT, checkpoint=checkpoint(50), at=T0),
    ),
    (
        AttemptFailed(kind="nan_loss", message="m", advice="a", exit_code=70, ended_at=T0, billed_seconds=1),
        RecordAttemptFailed(attempt_id=ATTEMPT, kind="nan_loss", message="m", advice="a", at=T0),
    ),
    (
        AttemptLost(message="gone", ended_at=T0, billed_seconds=1),
        RecordAttemptFailed(attempt_id=ATTEMPT, kind="lost", message="gone", advice=None, at=T0),
    ),
    (AttemptCancelled(ended_at=T0, billed_seconds=1), RecordAttemptCancelled(attempt_id=ATTEMPT, at=T0)),
    (
        AttemptSucceeded(steps=9, final_loss=0.5, artifacts=[], undelivered=["x"], ended_at=T0, billed_seconds=1),
        RecordTrainingFinished(attempt_id=ATTEMPT, steps=9, final_loss=0.5, artifacts=[], undelivered=["x"], at=T0),
    ),
]


@pytest.mark.parametrize(("event", "command"), FACTS)
def test_what_happened_elsewhere_is_kept_on_the_job(event: Event, command: object) -> None:
    assert kept(event) == command


def test_steps_of_an_attempt_that_the_job_does_not_show_are_passed_over() -> None:
    assert following(AttemptAccepted(epoch=1, provider_ref="42", accepted_at=T0), *running()) == []


def test_what_storage_misses_completes_the_job_with_those_names() -> None:
    (ask,) = following(finished(), *running())
    assert isinstance(ask, Ask)
    (keep,) = answered(ask, {"missing": ["lora.safetensors"]}, T0)
    assert keep.command == CompleteDelivery(missing=("lora.safetensors",), at=T0)


def test_a_refused_start_fails_the_attempt() -> None:
    (ask,) = following(dispatched(), *queued())
    assert isinstance(ask, Ask)
    keep = refused(ask, "unknown_provider", "no such provider", T0)
    assert keep is not None
    assert keep.command == RecordAttemptFailed(
        attempt_id=ATTEMPT, kind="start_refused", message="no such provider", advice=None, at=T0
    )


def test_a_refused_preparation_is_kept_as_what_was_refused() -> None:
    kinds: list[str] = []
    for ask in (*following(submitted()), *following(FUNDED, submitted())):
        assert isinstance(ask, Ask)
        keep = refused(ask, "whatever", "no", T0)
        assert keep is not None
        assert isinstance(keep.command, RecordPreparationRefused)
        kinds.append(keep.command.kind)
    assert kinds == ["funds_refused", "dataset_refused"]


def test_cancelling_an_attempt_that_never_was_cancels_the_job() -> None:
    ask = Ask(owner="provider_bridge", command=CancelAttempt(attempt_id=ATTEMPT, reason=""), purpose="cancel")
    keep = refused(ask, "not_found", "no such attempt", T0)
    assert keep is not None
    assert keep.command == RecordAttemptCancelled(attempt_id=ATTEMPT, at=T0)
    assert refused(ask, "stale_epoch", "", T0) is None


@pytest.mark.parametrize(("event", "past"), [(submitted(), []), (FUNDED, [submitted()]), (dispatched(), queued())])
def test_a_bug_of_the_owner_is_no_refusal_and_no_outage(event: Event, past: list[Event]) -> None:
    """It fails no job, and it is not waited out: the event is parked."""
    (ask,) = following(event, *past)
    assert isinstance(ask, Ask)
    assert refused(ask, "internal_error", "Something failed on our side", T0) is None
    assert "internal_error" not in RETRY_LATER


def test_a_refused_settlement_is_for_a_person_to_look_at() -> None:
    ask = Ask(owner="billing", command=SettleJob(job_id=uuid4()), purpose="settle")
    assert refused(ask, "not_found", "", T0) is None


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"--max_train_steps": 30}, 30),
        ({"max-train-steps": "30"}, 30),
        ({"--max_training_steps": 30}, 30),
        ({"--max_train_steps": 0, "--num_train_epochs": 2}, None),
        ({"--num_train_epochs": 2}, None),
    ],
)
def test_the_step_count_is_read_in_every_spelling(config: dict[str, Any], steps: int | None) -> None:
    assert planned_steps(config) == steps
