"""What the attempt remembers of targets outside: beside the training, once, and never instead of its end."""

from typing import Any

import pytest

from shared.contracts.attempt import AttemptDelivered, AttemptDeliveryFailed, AttemptLateReport, AttemptSucceeded
from tests.unit.provider_bridge.test_attempt_decider import (
    CANCEL_REQUESTED,
    RUNNING,
    SUCCEEDED,
    at,
    refusal,
    report,
    when,
)

DELIVERED = {
    "target": "hub:ann/digits",
    "what": "results",
    "status": "delivered",
    "url": "https://hub/ann/digits",
    "files": ["a", "b"],
}
FAILED = {**DELIVERED, "status": "failed", "message": "HTTP 403"}
THERE = AttemptDelivered(
    target="hub:ann/digits", what="results", url="https://hub/ann/digits", files=["a", "b"], delivered_at=at(30)
)
NOT_THERE = AttemptDeliveryFailed(
    target="hub:ann/digits", what="results", message="HTTP 403", files=["a", "b"], failed_at=at(30)
)


@pytest.mark.parametrize(("data", "event"), [(DELIVERED, THERE), (FAILED, NOT_THERE)])
def test_a_delivery_report_is_recorded_once(data: dict[str, Any], event: Any) -> None:
    assert when(RUNNING, report("delivery", data)) == [event]
    assert when([*RUNNING, event], report("delivery", data, 40)) == []


def test_a_delivery_that_succeeds_after_it_had_failed_is_recorded_beside_it() -> None:
    assert when([*RUNNING, NOT_THERE], report("delivery", DELIVERED)) == [THERE]


def test_each_target_and_each_set_of_files_counts_apart() -> None:
    [other_files] = when([*RUNNING, THERE], report("delivery", {**DELIVERED, "what": "checkpoint-50"}))
    [other_place] = when([*RUNNING, THERE], report("delivery", {**DELIVERED, "target": "s3:bucket"}))
    assert (other_files, other_place) != (THERE, THERE)


def test_a_failed_delivery_leaves_the_training_as_it_is() -> None:
    [ended] = when([*RUNNING, NOT_THERE], report("done", {"steps": 5}, 69.2))
    assert isinstance(ended, AttemptSucceeded)
    assert ended.undelivered == []


def test_a_delivery_is_recorded_while_the_run_is_being_cancelled() -> None:
    assert when([*RUNNING, CANCEL_REQUESTED], report("delivery", DELIVERED)) == [THERE]


def test_a_resent_delivery_after_the_end_is_a_lost_answer_and_a_new_one_is_late() -> None:
    history = [*RUNNING, THERE, SUCCEEDED]
    assert when(history, report("delivery", DELIVERED, 80)) == []
    assert when(history, report("delivery", FAILED, 80)) == [AttemptLateReport(report_type="delivery", at=at(80))]


@pytest.mark.parametrize("data", [{}, {**DELIVERED, "status": "perhaps"}, {**DELIVERED, "files": "a"}])
def test_a_delivery_report_that_cannot_be_read_is_refused(data: dict[str, Any]) -> None:
    assert refusal(RUNNING, report("delivery", data)) == "validation_error"
