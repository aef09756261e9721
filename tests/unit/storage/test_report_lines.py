"""Which report batches are taken whole, and which are refused whole."""

from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.storage.domain.reports import accept
from shared.contracts.artifact import RecordReports
from shared.problems import Rejected

JOB, ATTEMPT = UUID(int=1), UUID(int=2)


def a_line(seq: int, **changes: Any) -> dict[str, object]:
    line = {
        "v": 1,
        "job": str(JOB),
        "attempt": str(ATTEMPT),
        "seq": seq,
        "ts": "2026-11-22T01:02:03Z",
        "type": "log",
        "data": {"message": f"line {seq}"},
    }
    return {**line, **changes}


def a_batch(*lines: dict[str, object]) -> RecordReports:
    return RecordReports(job_id=JOB, attempt_id=ATTEMPT, lines=list(lines))


def test_lines_come_out_by_rising_seq_each_once() -> None:
    accepted = accept(a_batch(a_line(3), a_line(1), a_line(3, data={"message": "again"})))
    assert [line.seq for line in accepted] == [1, 3]
    assert msgspec.json.decode(accepted[1].line)["data"] == {"message": "line 3"}


def test_members_we_do_not_know_are_kept() -> None:
    (line,) = accept(a_batch(a_line(1, colour="blue")))
    assert msgspec.json.decode(line.line)["colour"] == "blue"


@pytest.mark.parametrize(
    "line",
    [
        a_line(0),
        a_line(-1),
        a_line(2**60),
        a_line(1, type="tel.>"),
        a_line(1, type=""),
        a_line(1, ts="yesterday"),
        a_line(1, ts="2026-11-22T01:02:03"),
        a_line(1, job=str(UUID(int=9))),
        a_line(1, attempt=str(UUID(int=9))),
        {"seq": 1},
    ],
)
def test_one_unusable_line_refuses_the_batch(line: dict[str, object]) -> None:
    with pytest.raises(Rejected) as refusal:
        accept(a_batch(a_line(1), line))
    assert refusal.value.code == "validation_error"


def test_more_lines_than_a_batch_may_have_are_refused() -> None:
    with pytest.raises(Rejected) as refusal:
        accept(a_batch(*(a_line(seq) for seq in range(1, 258))))
    assert refusal.value.code == "payload_too_large"
