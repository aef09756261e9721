"""The fold behind every answer about a job."""

from uuid import uuid4

import pytest
from msgspec.structs import replace

from services.gateway.domain.job_body import JobBody, job_body, status_of
from services.gateway.domain.view_money import cost_micro_usd
from services.gateway.domain.views import JobView, evolve_job_view, fold_job
from shared.contracts import catalogue
from shared.contracts.account import AccountOpened
from shared.contracts.attempt import AttemptCancelled, AttemptCancelRequested
from shared.contracts.job import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobLateFact,
    JobQueued,
    JobStarted,
)
from tests.unit.gateway.builders import NOON, StoryTeller, at


def view_of(story: StoryTeller) -> JobView:
    return fold_job(story.job_id, story.events)


def body_of(story: StoryTeller, *, seconds: float = 100) -> JobBody:
    return job_body(view_of(story), now=at(seconds), queue_position=1)


def test_submitted_job_with_data_is_uploading_and_without_is_pending() -> None:
    assert status_of(view_of(StoryTeller().submitted())) == "uploading"
    assert status_of(view_of(StoryTeller().submitted(datasets=[]))) == "pending"


def test_packed_job_without_funds_is_pending() -> None:
    story = StoryTeller().submitted().queued()
    before_funds = story.events[:3]
    assert status_of(fold_job(story.job_id, before_funds)) == "pending"


def test_waiting_job_says_why_and_where_it_stands() -> None:
    body = body_of(StoryTeller().submitted().queued())
    assert (body.status, body.queue_position) == ("queued", 1)
    assert body.metadata["wait"] == {"reason": "user_limit", "detail": "2 of 2 run", "limit": 2, "holders": ["x"]}


def test_running_job_costs_and_lasts_until_now() -> None:
    story = StoryTeller().submitted().queued().running()
    body = body_of(story, seconds=25)
    assert (body.status, body.started_at) == ("running", at(10).isoformat(timespec="microseconds"))
    assert (body.duration_seconds, body.cost_usd) == (15.0, 0.015)
    assert (body.hardware_type, body.queue_position, body.is_active) == ("cpu", None, True)


def test_attempt_that_was_cancelled_before_its_request_is_no_run_of_the_job() -> None:
    story = StoryTeller().submitted().queued()
    story.job(JobCancelRequested(requested_at=at(5), reason="asked"))
    story.attempt(AttemptCancelRequested(requested_at=at(6), reason="asked"))
    story.attempt(AttemptCancelled(ended_at=at(6), billed_seconds=0))
    story.job(JobCancelled(cancelled_at=at(6), reason="asked"))
    body = body_of(story)
    assert (body.status, body.metadata["attempts"]) == ("cancelled", [])
    assert [attempt.state for attempt in view_of(story).attempts.values()] == ["cancelled"]


def test_completed_job_costs_what_was_captured_for_ever() -> None:
    story = StoryTeller().submitted().queued().running().completed()
    early, late = body_of(story, seconds=40), body_of(story, seconds=4000)
    assert early == late
    assert (early.status, early.cost_usd, early.duration_seconds, early.is_terminal) == ("completed", 0.02, 21.0, True)


def test_ended_attempt_counts_its_billed_seconds_until_billing_has_booked_them() -> None:
    story = StoryTeller().submitted().queued().running().completed()
    unbooked = fold_job(story.job_id, story.events[:-3])
    assert cost_micro_usd(unbooked.money, unbooked.attempts.values(), at(9999)) == 20_000


@pytest.mark.parametrize(("seconds", "cost"), [(10, 0), (10.5, 1000), (29.2, 20_000), (30, 20_000)])
def test_running_cost_is_rounded_as_it_will_be_billed(seconds: float, cost: int) -> None:
    story = StoryTeller().submitted().queued().running()
    view = view_of(story)
    assert cost_micro_usd(view.money, view.attempts.values(), at(seconds)) == cost
    (attempt,) = view.attempts.values()
    odd = replace(attempt, price_micro_usd_per_hour=1800)
    assert cost_micro_usd(view.money, [odd], at(10.5)) == 1


def test_job_without_any_money_event_has_no_cost() -> None:
    assert body_of(StoryTeller().submitted()).cost_usd is None


def test_output_is_the_model_and_not_a_checkpoints_copy_of_it() -> None:
    story = StoryTeller().submitted().queued().running()
    story.stored("pytorch_lora_weights.safetensors").stored("checkpoint-5/pytorch_lora_weights.safetensors")
    assert body_of(story).output_url is None
    story.completed()
    expected = f"/api/cloud/storage/outputs/{story.job_id}/pytorch_lora_weights.safetensors"
    assert body_of(story).output_url == expected
    assert body_of(story).metadata["artifacts"] == {"count": 2, "size_bytes": 14}


def test_second_attempt_is_the_one_that_is_shown_and_both_are_told() -> None:
    story = StoryTeller().submitted().queued().running()
    failed = JobAttemptFailed(
        attempt_id=story.attempt_id, kind="preempted", message="gone", advice=None, failed_at=at(20)
    )
    story.job(failed, JobQueued(queued_at=at(21), not_before=at(31), reason="retry after preempted"))
    waiting = body_of(story)
    assert (waiting.status, waiting.metadata["queue_reason"]) == ("queued", "retry after preempted")
    assert waiting.metadata["not_before"] == at(31).isoformat(timespec="microseconds")
    again = body_of(story.running(number=2))
    assert (again.status, again.metadata["attempt"]) == ("running", 2)
    assert [attempt["number"] for attempt in again.metadata["attempts"]] == [1, 2]


def test_failed_job_says_why_and_what_to_do() -> None:
    story = StoryTeller().submitted()
    story.job(JobFailed(failed_at=at(3), kind="dataset_refused", message="no pictures in /a", advice="add pictures"))
    body = body_of(story)
    assert (body.status, body.error_message) == ("failed", "no pictures in /a")
    assert body.metadata["failure"]["advice"] == "add pictures"


@pytest.mark.parametrize(
    "late",
    [
        JobStarted(attempt_id=uuid4(), started_at=at(50)),
        JobFailed(failed_at=at(50), kind="lost", message="?", advice=None),
        JobCompleted(completed_at=at(50), delivery="delivered", missing=[]),
        JobCancelRequested(requested_at=at(50), reason="?"),
        JobQueued(queued_at=at(50), reason="?"),
    ],
)
def test_nothing_reopens_a_job_that_has_ended(late: object) -> None:
    story = StoryTeller().submitted().job(JobCancelled(cancelled_at=at(5), reason="asked"))
    before = view_of(story).job
    assert view_of(story.job(late)).job == before  # pyright: ignore[reportArgumentType] - each is an event of the job


def test_late_fact_and_delete_are_kept_beside_the_end() -> None:
    story = StoryTeller().submitted().job(JobCancelled(cancelled_at=at(5), reason="asked"))
    story.job(JobLateFact(fact="attempt.succeeded", attempt_id=None, at=at(6)), JobDeleted(deleted_at=at(7)))
    view = view_of(story)
    assert (status_of(view), view.job.late_facts, view.visible) == ("cancelled", 1, False)


def test_same_event_twice_changes_nothing() -> None:
    story = StoryTeller().submitted().queued().running().stored("a.bin").completed()
    view = view_of(story)
    for recorded in story.events:
        assert evolve_job_view(view, recorded, catalogue.decode(recorded)) is view


def test_event_of_no_known_type_or_no_meaning_changes_nothing() -> None:
    story = StoryTeller().submitted()
    view = view_of(story)
    opened = AccountOpened(owner="local", month="2026-11", floor_micro_usd=None, opened_at=NOON)
    story.tell(story.account, opened)
    assert evolve_job_view(view, story.events[-1], opened) is view
    assert evolve_job_view(view, story.events[-1], None) is view


def test_token_digest_is_in_no_answer() -> None:
    story = StoryTeller().submitted().queued().running()
    attempt = view_of(story).attempts[str(story.attempt_id)]
    assert attempt.token_sha256
    assert attempt.token_sha256 not in repr(body_of(story))
