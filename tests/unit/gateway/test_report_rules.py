"""Report batches, what they say to people, and whose token may send them."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from services.gateway.domain.report_batch import commands_for, is_last_word_again, parse_batch
from services.gateway.domain.report_text import log_tail, log_text, metric_point, progress
from services.gateway.domain.tokens import check_upload_place, holder, require_live
from services.gateway.domain.view_attempt import AttemptView
from shared.problems import Rejected
from tests.unit.gateway.builders import TOKEN, digest_of

ATTEMPT = AttemptView(attempt_id=uuid4(), job_id=uuid4(), number=1, token_sha256=digest_of(TOKEN))


def a_line(seq: int = 1, type_: str = "log", *, attempt: AttemptView = ATTEMPT, **data: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "job": str(attempt.job_id),
        "attempt": str(attempt.attempt_id),
        "seq": seq,
        "ts": "2026-11-22T01:02:03Z",
        "type": type_,
        "data": data,
    }


def ndjson(*lines: dict[str, Any]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def ended(state: Any) -> AttemptView:
    return msgspec.structs.replace(ATTEMPT, state=state)


def test_batch_keeps_lines_as_they_were_sent_and_knows_its_milestones() -> None:
    sent = [a_line(1, "hello", device="cpu", new_member=1), a_line(2, "log", message="x"), a_line(3, "gpu_fault")]
    batch = parse_batch(ndjson(*sent) + b"\n", ATTEMPT)
    assert batch.raw == sent
    assert [line.seq for line in batch.milestones] == [1, 3]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_payload"),
        (b"\n\n", "invalid_payload"),
        (b"nonsense\n", "invalid_payload"),
        (b'{"v": 1}\n', "invalid_payload"),
        (b"\xff\xfe\n", "invalid_payload"),
        (ndjson(*[a_line(seq) for seq in range(257)]), "payload_too_large"),
        (ndjson(a_line(message="x" * 600_000)), "payload_too_large"),
        (ndjson(a_line(attempt=AttemptView(attempt_id=uuid4(), job_id=ATTEMPT.job_id))), "invalid_payload"),
    ],
)
def test_batch_that_cannot_be_taken_is_refused_whole(body: bytes, code: str) -> None:
    with pytest.raises(Rejected) as error:
        parse_batch(body, ATTEMPT)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("state", "type_", "again"),
    [
        ("succeeded", "done", True),
        ("succeeded", "log", False),
        ("failed", "failed", True),
        ("failed", "done", False),
        ("cancelled", "failed", False),
        ("lost", "done", False),
        ("running", "done", False),
    ],
)
def test_only_the_report_that_ended_the_attempt_is_its_last_word(state: str, type_: str, *, again: bool) -> None:
    batch = parse_batch(ndjson(a_line(1, type_)), ATTEMPT)
    assert is_last_word_again(ended(state), batch) is again


def test_stop_rides_back_under_an_id_that_never_changes() -> None:
    assert commands_for(ATTEMPT) == []
    asked = msgspec.structs.replace(ATTEMPT, cancel_requested=True)
    (first,), (second,) = commands_for(asked), commands_for(asked)
    assert first == second
    assert first.name == "stop"


def test_token_finds_its_own_attempt_only() -> None:
    other = AttemptView(attempt_id=uuid4(), job_id=ATTEMPT.job_id, token_sha256=digest_of("other"))
    unstarted = AttemptView(attempt_id=uuid4(), job_id=ATTEMPT.job_id)
    assert holder([other, unstarted, ATTEMPT], TOKEN) is ATTEMPT
    for attempts, token in (([other, unstarted], TOKEN), ([ATTEMPT], ""), ([ATTEMPT], digest_of(TOKEN)), ([], TOKEN)):
        with pytest.raises(Rejected) as error:
            holder(attempts, token)
        assert error.value.code == "invalid_token"


def test_attempt_that_ended_or_was_replaced_is_superseded() -> None:
    assert require_live(ATTEMPT, 1) is ATTEMPT
    replaced: Callable[[], object] = lambda: require_live(ATTEMPT, 2)  # noqa: E731 - two ways to be over
    over: Callable[[], object] = lambda: require_live(ended("lost"), 1)  # noqa: E731 - two ways to be over
    for refused in (replaced, over):
        with pytest.raises(Rejected) as error:
            refused()
        assert error.value.code == "attempt_superseded"


def test_upload_place_gives_the_job_it_belongs_to() -> None:
    assert check_upload_place("outputs", "job/checkpoint-5/model.safetensors") == "job"


@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        ("datasets", "job/x"),
        ("outputs", "job"),
        ("outputs", "job/"),
        ("outputs", "/x"),
        ("outputs", ""),
        ("outputs", "job/../x"),
        ("outputs", "job/./x"),
        ("outputs", "job//x"),
        ("outputs", "job/a\\b"),
        ("outputs", "job/a\0b"),
        ("outputs", "job/a\nb"),
    ],
)
def test_upload_place_elsewhere_is_refused(bucket: str, key: str) -> None:
    with pytest.raises(Rejected) as error:
        check_upload_place(bucket, key)
    assert error.value.code == "invalid_object_key"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (a_line(type_="log", level="warn", message="hot"), "[warn] hot"),
        (a_line(type_="hello", device="cuda:0"), "[info] trainer started on cuda:0"),
        (a_line(type_="phase", phase="caching", detail="3 of 9"), "[info] caching: 3 of 9"),
        (a_line(type_="phase", phase="training"), "[info] training"),
        (a_line(type_="warning", message="odd"), "[warning] odd"),
        (a_line(type_="checkpoint", step=5), "[info] checkpoint saved at step 5"),
        (a_line(type_="done", steps=10), "[info] done after 10 steps"),
        (a_line(type_="failed", kind="bad_data", message="no", advice="do"), "[error] bad_data: no (do)"),
        (a_line(type_="new_in_version_9"), "[info] new_in_version_9"),
    ],
)
def test_each_report_reads_as_a_log_line(line: dict[str, Any], text: str) -> None:
    assert log_text(line) == f"2026-11-22T01:02:03Z {text}"


def test_log_tail_begins_at_a_whole_line() -> None:
    lines = [a_line(seq, message=f"näme {seq}") for seq in range(10)]
    whole = log_tail(lines, 10_000)
    assert whole.count("\n") == 10
    cut = log_tail(lines, len(whole.encode()) // 2)
    assert whole.endswith(cut)
    assert cut.startswith("2026-")


def test_progress_is_the_newest_of_each_kind() -> None:
    lines = [
        a_line(1, "phase", phase="caching"),
        a_line(2, "metrics", step=1, total_steps=8, loss=0.9),
        a_line(3, "phase", phase="training"),
        a_line(4, "metrics", step=2, total_steps=8, loss=0.5),
        a_line(5, "log", message="hi"),
    ]
    found = progress(lines)
    assert (found["stage"], found["progress"], found["loss"], found["last_log"]) == ("training", 25.0, 0.5, "hi")
    assert progress([])["progress"] is None
    assert progress([a_line(type_="metrics", step=1, total_steps=0)])["progress"] is None


def test_metric_point_is_flat() -> None:
    point = metric_point(a_line(7, "metrics", step=1, loss=0.5))
    assert (point["seq"], point["step"], point["loss"]) == (7, 1, 0.5)


def test_commands_ride_back_under_ids_that_stay_and_the_last_of_each_name_counts() -> None:
    asked = msgspec.structs.replace(ATTEMPT, asked={"checkpoint_now": "c-2", "sample_now": "c-1"})
    told = [(command.id, command.name) for command in commands_for(asked)]
    assert told == [("c-2", "checkpoint_now"), ("c-1", "sample_now")]
    cancelled = msgspec.structs.replace(asked, cancel_requested=True)
    assert [command.name for command in commands_for(cancelled)] == ["checkpoint_now", "sample_now", "stop"]
