"""Lists of jobs from Postgres, beside what the jobs' own folds say."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import get_args

import asyncpg
import msgspec
import pytest

from services.gateway.bodies import JobBodies
from services.gateway.domain.job_body import JobBody, Status, job_body, status_of
from services.gateway.domain.views import JobView, fold_job
from services.gateway.projections.jobs import JobFilter, JobsView, project_page
from shared.contracts.job import JobCancelled, JobDeleted, JobFailed, JobQueued
from tests.support.log import LogDatabase
from tests.support.waiting import eventually
from tests.unit.gateway.builders import StoryTeller, at

FILTERS = [
    JobFilter(status=status, provider=provider, local=local)
    for status in (None, *get_args(Status))
    for provider in (None, "local", "replicate")
    for local in (None, True, False)
]


Listed = tuple[list[JobBody], int]
"""A page and how many jobs there are in all."""


class Lists:
    """The view's rows and what a gateway reads of them; `now` is its clock's moment."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.now = at(100)
        self._view = JobsView(pool)
        self._bodies = JobBodies(self._view, self._clock, lambda: self._seen)
        self._seen = 0

    def _clock(self) -> datetime:
        return self.now

    async def fold(self, *stories: StoryTeller) -> None:
        """Projects the stories so far, once more or for the first time: what is known counts once."""
        events = [recorded for story in stories for recorded in story.events]
        async with self._pool.acquire() as connection, connection.transaction():
            await project_page(connection, events)
        self._seen += len(events)

    async def spoil_views(self) -> None:
        """From now on no view can be read."""
        await self._pool.execute("UPDATE gateway.jobs_view SET view = '\"spoilt\"'")

    async def page(
        self, wanted: JobFilter | None = None, limit: int = 50, offset: int = 0
    ) -> tuple[list[JobBody], int]:
        """A page as a client decodes it."""
        page = await self._view.page(wanted or JobFilter(), limit=limit, offset=offset)
        encoded = await self._bodies.encoded(page.stamps)
        return [msgspec.json.decode(body, type=JobBody) for body in encoded], page.total


@pytest.fixture
async def lists(log_database: LogDatabase) -> AsyncIterator[Lists]:
    async with asyncpg.create_pool(log_database.dsn("gateway"), min_size=1, max_size=2) as pool:
        yield Lists(pool)


def many_stories() -> list[StoryTeller]:
    """Jobs of two providers in every state there is, two of them submitted in the same moment, one deleted."""
    stories: list[StoryTeller] = []
    for number in range(18):
        provider = "local" if number % 3 else "replicate"
        story = StoryTeller().submitted(provider=provider, submitted_at=at(number // 2), priority=10 + number % 2)
        ended = at(40 + number)
        match number % 9:
            case 0:
                pass
            case 1:
                story.queued()
            case 2:
                story.queued().running()
            case 3:
                story.queued().running().stored("model.safetensors").completed()
            case 4:
                story.job(JobFailed(failed_at=ended, kind="dataset_refused", message="no such folder", advice="look"))
            case 5:
                story.queued().job(JobCancelled(cancelled_at=ended, reason="asked"))
            case 6:
                story.job(JobQueued(queued_at=at(3), reason="first_time"))
            case 7:
                story.queued().running().checkpointed(5)
            case _:
                story.job(JobCancelled(cancelled_at=ended, reason="asked"), JobDeleted(deleted_at=ended))
        stories.append(story)
    return stories


def expected(stories: Sequence[StoryTeller], wanted: JobFilter, now: datetime) -> list[JobBody]:
    """Every job that the filter lets through, newest first, from the folds alone."""
    views = [view for story in stories if (view := fold_job(story.job_id, story.events)).visible]
    waiting = sorted((view for view in views if view.job.phase in {"submitted", "queued"}), key=_turn)
    places = {view.job_id: place for place, view in enumerate(waiting, start=1)}
    chosen = [
        view
        for view in views
        if wanted.status in {None, status_of(view)}
        and wanted.provider in {None, view.job.provider}
        and wanted.local in {None, view.job.provider == "local"}
    ]
    chosen.sort(key=lambda view: (view.job.submitted_at, view.job_id), reverse=True)
    return [job_body(view, now=now, queue_position=places.get(view.job_id)) for view in chosen]


def placeless(jobs: Sequence[JobBody]) -> list[JobBody]:
    """Without what other jobs decide."""
    return [msgspec.structs.replace(job, queue_position=None) for job in jobs]


def _turn(view: JobView) -> tuple[object, ...]:
    queued_at = view.job.queued_at
    return (-view.job.priority, queued_at is None, queued_at or at(0), view.job_id)


async def test_every_filter_and_page_gives_what_the_folds_say_newest_first(lists: Lists) -> None:
    stories = many_stories()
    await lists.fold(*stories)
    for wanted in FILTERS:
        told = expected(stories, wanted, lists.now)
        assert await lists.page(wanted) == (told, len(told)), wanted
        assert await lists.page(wanted, limit=2, offset=1) == (told[1:3], len(told)), wanted
    assert len(expected(stories, JobFilter(), lists.now)) == 16


async def test_list_follows_what_happens_to_a_job_it_has_shown(lists: Lists) -> None:
    story, other = StoryTeller().submitted(), StoryTeller().submitted()
    for go_on in (story.queued, other.queued, story.running, lambda: story.checkpointed(1), story.completed):
        go_on()
        await lists.fold(story, other)
        told = placeless(expected([story, other], JobFilter(), lists.now))
        for _ in range(2):
            jobs, total = await lists.page()
            assert (placeless(jobs), total) == (told, 2)
    story.job(JobDeleted(deleted_at=at(50)))
    await lists.fold(story)
    jobs, total = await lists.page()
    assert ([job.job_id for job in jobs], total) == ([str(other.job_id)], 1)


async def test_job_at_rest_is_read_and_encoded_once_for_as_long_as_nothing_happens_to_it(lists: Lists) -> None:
    story = StoryTeller().submitted().queued()
    await lists.fold(story)
    shown = await lists.page()
    await lists.spoil_views()
    assert await lists.page() == shown


async def test_running_job_grows_older_in_a_list_although_nothing_happens(lists: Lists) -> None:
    story = StoryTeller().submitted().queued().running()
    await lists.fold(story)
    shown: list[float | None] = []
    for seconds in (20, 30):
        lists.now = at(seconds)
        (job,), _ = await lists.page()
        shown.append(job.duration_seconds)
    assert shown == [10.0, 20.0]


async def test_place_of_a_waiting_job_moves_up_when_another_leaves(lists: Lists) -> None:
    first, second = StoryTeller().submitted(), StoryTeller().submitted()
    first.queued()
    await lists.fold(first, second)
    places = {job.job_id: job.queue_position for job in (await lists.page())[0]}
    assert places == {str(first.job_id): 1, str(second.job_id): 2}
    first.job(JobCancelled(cancelled_at=at(9), reason="asked"))
    await lists.fold(first)

    async def has_moved_up() -> bool:
        places = {job.job_id: job.queue_position for job in (await lists.page())[0]}
        return places == {str(first.job_id): None, str(second.job_id): 1}

    await eventually(has_moved_up)  # a place may be as old as twenty reads of the order take
