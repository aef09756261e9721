"""Whatever order streams arrive in, and however often: the view is the same."""

import random
from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.job_body import TERMINAL_STATUSES, job_body, status_of
from services.gateway.domain.views import JobView, evolve_job_view, fold_job
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import JobAttemptFailed, JobCancelled, JobDeleted, JobFailed, JobLateFact, JobQueued
from tests.unit.gateway.builders import StoryTeller, at


@st.composite
def stories(draw: st.DrawFn) -> StoryTeller:
    """A job that goes some way: retries, checkpoints, objects, and perhaps an end."""
    story = StoryTeller().submitted().queued()
    for number in range(1, draw(st.integers(0, 3)) + 1):
        story.running(number)
        for step in range(draw(st.integers(0, 2))):
            story.checkpointed(step)
            story.stored(f"checkpoint-{step}/model.safetensors", size_bytes=step)
        failed = JobAttemptFailed(attempt_id=story.attempt_id, kind="lost", message="?", advice=None, failed_at=at(20))
        story.job(failed, JobQueued(queued_at=at(21), reason="retry after lost"))
    match draw(st.sampled_from(["open", "completed", "failed", "cancelled"])):
        case "completed":
            story.running(9).stored("model.safetensors").completed()
        case "failed":
            story.job(JobFailed(failed_at=at(40), kind="lost", message="?", advice=None))
        case "cancelled":
            story.job(JobCancelled(cancelled_at=at(40), reason="asked"))
        case _:
            return story
    if draw(st.booleans()):
        story.job(JobLateFact(fact="?", attempt_id=None, at=at(41)), JobDeleted(deleted_at=at(42)))
    return story


def shuffled(events: list[RecordedEvent], seed: int) -> list[RecordedEvent]:
    """The same events with streams interleaved anyhow, each stream in its own order, some delivered again."""
    chance = random.Random(seed)  # noqa: S311 - a shuffle
    streams: dict[str, list[RecordedEvent]] = {}
    for recorded in events:
        streams.setdefault(recorded.stream, []).append(recorded)
    waiting: list[list[RecordedEvent]] = list(streams.values())
    delivered: list[RecordedEvent] = []
    while waiting:
        stream = chance.choice(waiting)
        delivered.append(stream.pop(0))
        if chance.random() < 0.3:
            delivered.append(chance.choice(delivered))
        waiting = [left for left in waiting if left]
    return delivered


@given(stories(), st.integers())
def test_duplicated_and_reordered_delivery_gives_same_view(story: StoryTeller, seed: int) -> None:
    ordered = fold_job(story.job_id, story.events)
    assert fold_job(story.job_id, shuffled(story.events, seed)) == ordered


@given(stories())
def test_every_prefix_has_an_answer_and_the_end_is_absorbing(story: StoryTeller) -> None:
    view, statuses = JobView(job_id=story.job_id), list[str]()
    for recorded in story.events:
        view = evolve_job_view(view, recorded, catalogue.decode(recorded))
        assert msgspec.json.encode(job_body(view, now=at(99), queue_position=None))
        statuses.append(status_of(view))
    for earlier, later in pairwise(statuses):
        assert earlier not in TERMINAL_STATUSES or later == earlier


@given(stories())
def test_stored_view_reads_back_as_it_was(story: StoryTeller) -> None:
    view = fold_job(story.job_id, story.events)
    encoded = msgspec.json.encode(view, order="deterministic")
    assert msgspec.json.decode(encoded, type=JobView) == view
    assert msgspec.json.encode(msgspec.json.decode(encoded, type=JobView), order="deterministic") == encoded
