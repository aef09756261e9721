"""The retry table, line by line."""

from typing import get_args

import pytest

from services.scheduler.domain.retry_policy import AFTER_A_WHILE, AT_ONCE, NEVER, GiveUp, Retry, after_failure
from shared.contracts.run import FailureKind


@pytest.mark.parametrize(
    ("kind", "delays_s"),
    [
        ("preempted", [0, 0, 0]),
        ("lost", [10, 20, 40]),
        ("killed", [10, 20, 40]),
        ("unreachable", [10, 20, 40]),
        ("internal", [10, 20, 40]),
        ("gpu_fault", [10, 20, 40]),
    ],
)
def test_passing_failures_are_tried_again_with_growing_delays(kind: str, delays_s: list[int]) -> None:
    for attempts_made, delay_s in enumerate(delays_s, start=1):
        decision = after_failure(kind, attempts_made, 9)
        assert isinstance(decision, Retry)
        assert decision.delay_s == delay_s
        assert f"attempt {attempts_made + 1} of 9" in decision.reason


@pytest.mark.parametrize("kind", ["bad_config", "bad_data", "out_of_memory", "nan_loss", "disk_full", "start_refused"])
def test_failures_of_the_input_are_never_tried_again(kind: str) -> None:
    assert after_failure(kind, 1, 9) == GiveUp(reason=f"{kind} would fail the same way again")


def test_every_kind_of_failure_has_its_place_in_the_table_once() -> None:
    tables = (AT_ONCE, AFTER_A_WHILE, NEVER)
    for kind in get_args(FailureKind):
        assert sum(kind in table for table in tables) == 1, kind


def test_a_kind_that_nobody_knows_is_not_tried_again() -> None:
    assert after_failure("gremlins", 1, 9) == GiveUp(reason="unknown kind gremlins")


@pytest.mark.parametrize("kind", ["preempted", "lost"])
def test_no_failure_is_tried_more_often_than_allowed(kind: str) -> None:
    assert isinstance(after_failure(kind, 2, 3), Retry)
    assert after_failure(kind, 3, 3) == GiveUp(reason="attempt 3 of 3 was the last")


def test_the_delay_stops_growing_at_ten_minutes() -> None:
    decision = after_failure("lost", 19, 20)
    assert isinstance(decision, Retry)
    assert decision.delay_s == 600
