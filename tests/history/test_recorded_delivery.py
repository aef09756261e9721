"""Recorded logs delivered anyhow: the gateway's views and the consumer's rows are as if they came once, in order."""

import asyncio
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.views import JobView, evolve_job_view, fold_job
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import BILLING_LEDGER, GATEWAY_JOBS_VIEW, Durable
from shared.eventstore.memory import MemoryEventStore
from shared.eventstore.publisher import Publisher
from shared.messaging.consumer import Consumer, Pace
from shared.messaging.handling import Subscription
from tests.history.stored_log import HISTORIES, envelopes, read_expected, read_log
from tests.support.depth import examples
from tests.support.log_machine import HandedPull
from tests.support.memory_backend import MemoryBackend

PATHS = {path.stem: path for path in sorted(HISTORIES.glob("*.jsonl"))}
LOGS = {name: envelopes(read_log(path)) for name, path in PATHS.items()}
STORIES = [
    pytest.param(name, job_id, id=f"{name}-{story}")
    for name, path in PATHS.items()
    for story, job_id in read_expected(path).stories.items()
]


def stirred(events: list[RecordedEvent], seed: int) -> list[RecordedEvent]:
    """Streams interleaved anyhow, each in its own order, a third of the events again some time later."""
    chance = random.Random(seed)  # noqa: S311 - a shuffle
    streams: dict[str, list[RecordedEvent]] = {}
    for event in events:
        streams.setdefault(event.stream, []).append(event)
    waiting: list[list[RecordedEvent]] = list(streams.values())
    delivered: list[RecordedEvent] = []
    while waiting:
        delivered.append(chance.choice(waiting).pop(0))
        if chance.random() < 0.3:
            delivered.append(chance.choice(delivered))
        waiting = [left for left in waiting if left]
    return delivered


@pytest.mark.parametrize(("name", "job_id"), STORIES)
@examples(6)
@given(seed=st.integers(0, 2**32))
def test_recorded_story_doubled_and_reordered_gives_the_same_view(name: str, job_id: UUID, seed: int) -> None:
    story = [event for event in LOGS[name] if event.correlation_id == job_id]
    assert fold_job(job_id, stirred(story, seed)) == fold_job(job_id, story)


class RecordedStore(MemoryEventStore):
    """A log in memory that can be given its past."""

    def restore(self, log: list[RecordedEvent]) -> None:
        """Everything that was recorded, as it was."""
        self._events += log
        for event in log:
            self._streams.setdefault(event.stream, []).append(event)


class Views:
    """The gateway's views, kept by a consumer whose deliveries are drawn."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.views: dict[UUID, JobView] = {}
        self.seen: list[int] = []

    async def project(self, _connection: Any, event: RecordedEvent) -> None:
        """As `project_jobs`, without the rows."""
        self.seen.append(event.global_position)
        view = self.views.get(event.correlation_id) or JobView(job_id=event.correlation_id)
        self.views[event.correlation_id] = evolve_job_view(view, event, catalogue.decode(event))

    async def consume(self, log: list[RecordedEvent], chance: random.Random) -> None:
        """Publishes the log and hands its messages over in bunches: shuffled, some twice, some never."""
        store = RecordedStore()
        backend, pull, stop = MemoryBackend(store), HandedPull(), asyncio.Event()
        consumer = Consumer(
            Subscription(durable=self.durable, project=self.project),
            store=backend.store,
            pull=pull.make,
            pool=backend.pool,  # pyright: ignore[reportArgumentType] - its twin
            connect=backend.connect,  # pyright: ignore[reportArgumentType] - its twin
            pace=Pace(poll_s=3600),
        )
        running = asyncio.create_task(consumer.run(stop))
        await pull.idle.wait()
        store.restore(log)
        inbox, end = await backend.open_stream()
        publisher = Publisher(inbox, await backend.store.store_id(), end)  # pyright: ignore[reportArgumentType] - its twin
        await publisher.publish(backend.relay_connection, log)  # pyright: ignore[reportArgumentType] - its twin
        messages = [one for one in await backend.stream() if one.subject.split(".")[1] in self.durable.categories]
        drawn = [chance.choice(messages) for _ in messages]
        for start in range(0, len(drawn), 7):
            pull.hand(drawn[start : start + 7])
            await pull.idle.wait()
        pull.hand(messages[-1:])
        await pull.idle.wait()
        stop.set()
        await running


@pytest.mark.parametrize("durable", [GATEWAY_JOBS_VIEW, BILLING_LEDGER], ids=lambda durable: durable.name)
@pytest.mark.parametrize("name", sorted(LOGS))
@examples(3)
@given(seed=st.integers(0, 2**32))
def test_recorded_log_consumed_with_lost_doubled_and_reordered_messages_gives_the_same_views(
    name: str, durable: Durable, seed: int
) -> None:
    log, views = LOGS[name], Views(durable)
    with structlog.testing.capture_logs():
        asyncio.run(views.consume(log, random.Random(seed)))  # noqa: S311 - a shuffle
    due = [event for event in log if event.category in durable.categories]
    assert views.seen == [event.global_position for event in due]
    expected = {job_id: fold_job(job_id, [e for e in due if e.correlation_id == job_id]) for job_id in views.views}
    assert msgspec.json.encode(list(views.views.values())) == msgspec.json.encode(list(expected.values()))
