"""A job at a time that has not come is the job as it is now."""

import asyncio
from datetime import datetime
from typing import Any, cast

from services.gateway.domain.job_body import job_body
from services.gateway.projections.jobs import JobsView
from services.gateway.reads import JobReads, Moment
from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata
from shared.eventstore.api import Append
from shared.eventstore.memory import MemoryEventStore
from shared.service import Runtime
from tests.unit.gateway.builders import StoryTeller, at

UNUSED: Any = None
"""What a read of the past needs nothing of: the bus, other services, the view's tables."""


async def told(moment: datetime) -> Moment:
    """A job whose trainer said hello 15 seconds ago, as of a moment."""
    story = StoryTeller().submitted().queued().running()
    store = MemoryEventStore(clock=lambda: at(10))
    versions: dict[str, int] = {}
    for recorded in story.events:
        event = catalogue.decode(recorded)
        if recorded.category != "account" and event is not None:
            append = Append(
                stream=recorded.stream,
                expected_version=versions.get(recorded.stream, 0),
                events=[event],
                meta=EventMetadata(),
                correlation_id=story.job_id,
            )
            versions[recorded.stream] = (await store.append(append)).version
    runtime = Runtime(
        service="gateway",
        pool=UNUSED,
        store=cast("Any", store),
        bus=UNUSED,
        sender=UNUSED,
        clock=lambda: at(25),
        stop=asyncio.Event(),
    )
    return await JobReads(runtime, JobsView(UNUSED)).at(story.job_id, moment)


async def test_time_to_come_is_answered_as_of_now_and_costs_nothing_yet() -> None:
    future = await told(at(9999))
    assert future.now == at(25)
    assert job_body(future.view, now=future.now, queue_position=None).cost_usd == 0.015


async def test_time_that_was_is_answered_as_of_then() -> None:
    past = await told(at(12))
    assert past.now == at(12)
    assert job_body(past.view, now=past.now, queue_position=None).cost_usd == 0.002
