"""Answers about the past: the queue as it was, and what-if. Reads the log in pieces, so that the service serves on."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from uuid import UUID

import asyncpg
import msgspec

from services.scheduler.domain import queue_past
from services.scheduler.domain.queue_policy import Limits
from services.scheduler.domain.whatif import WhatIf
from services.scheduler.domain.whatif_story import Mark
from services.scheduler.projections.queue import QUERIES
from shared.contracts import catalogue
from shared.contracts.attempt import AttemptCancelled, AttemptFailed, AttemptLost, AttemptSucceeded
from shared.contracts.envelope import CommandEnvelope, CommandReply, RecordedEvent
from shared.contracts.job import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobQueued,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
    ReadQueue,
)
from shared.contracts.whatif import PriceUsage, SimulatePolicy, Usage
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage
from shared.eventstore.rows import recorded
from shared.messaging.commands import CommandSender
from shared.problems import Rejected, Unavailable

PAGE = 500
SLICE_S = 0.01
"""The longest that other work of this process waits for a piece of a simulation."""
PAST_TIMEOUT_S = 60.0
PRICE_TIMEOUT_S = 60.0
USAGES_PER_ASK = 20_000
MAX_JOB_ROWS = 5000

QUEUE_TYPES = (JobSubmitted, JobQueued, JobWaitExplained, JobDispatched, JobTrainingFinished)
ENDS = (JobCompleted, JobFailed, JobCancelled)
STORY_TYPES = (JobAttemptFailed, JobCancelRequested, JobFundsReserved)
ATTEMPT_TYPES = (AttemptSucceeded, AttemptFailed, AttemptCancelled, AttemptLost)

ReadNow = Callable[[ReadQueue, CommandEnvelope], Awaitable[CommandReply]]


def _names(kinds: Sequence[type[Event]]) -> list[str]:
    return [catalogue.event_type(kind) for kind in kinds]


_ENDS, _OF_QUEUE = _names(ENDS), _names(QUEUE_TYPES)
_TOLD = frozenset([*_ENDS, *_OF_QUEUE, *_names(STORY_TYPES), *_names(ATTEMPT_TYPES)])
"""What the stories are made of; the rest is passed over unread."""


class PastQueues:
    """Answers `ReadQueue`: of now by the dispatcher, of then by the log."""

    def __init__(self, pool: asyncpg.Pool, read_now: ReadNow) -> None:
        self._pool = pool
        self._read_now = read_now

    async def read_queue(self, command: ReadQueue, envelope: CommandEnvelope) -> CommandReply:
        """Who holds the slots and who waits, now or at a position."""
        if command.up_to_position == 0:
            return await self._read_now(command, envelope)
        with unavailable_on_outage("read_queue"):
            async with asyncio.timeout(PAST_TIMEOUT_S):
                rows = await self._pool.fetch(QUERIES.live_history, command.up_to_position, _OF_QUEUE, _ENDS)
        events: list[tuple[UUID, Event, int]] = []
        pause = _Pause()
        for one in map(recorded, rows):
            event = catalogue.decode(one)
            if event is not None:
                events.append((_stream_id(one), event, one.global_position))
            await pause.when_due()
        return CommandReply(data=queue_past.told(queue_past.fold_queue(events)))


def _stream_id(one: RecordedEvent) -> UUID:
    return UUID(one.stream.partition("-")[2])


class Simulator:
    """Answers `SimulatePolicy`, one question at a time."""

    def __init__(self, store: EventStore, sender: CommandSender, limits: Limits) -> None:
        self._store = store
        self._sender = sender
        self._limits = limits
        self._is_busy = False

    async def simulate(self, command: SimulatePolicy, envelope: CommandEnvelope) -> CommandReply:
        """Replays the window and answers a `WhatIfReport`.

        Raises:
            Rejected: `validation_error` for an empty window or too many rows, or a provider that has no price.
            Unavailable: another question is being answered, or the log or billing is away.
        """
        if command.up_to_position and command.up_to_position <= command.after_position:
            raise Rejected("validation_error", "the window ends before it begins", field="until")
        if not 0 <= command.jobs_limit <= MAX_JOB_ROWS or command.jobs_offset < 0:
            raise Rejected("validation_error", f"jobs_limit must be 0 to {MAX_JOB_ROWS}", field="jobs_limit")
        if self._is_busy:
            raise Unavailable("another what-if is being answered", retry_after_s=10)
        self._is_busy = True
        try:
            return await self._simulate(command, envelope)
        finally:
            self._is_busy = False

    async def _simulate(self, command: SimulatePolicy, envelope: CommandEnvelope) -> CommandReply:
        began = time.monotonic()
        what_if = WhatIf(command, self._limits)
        pause = _Pause()
        async for category, stream_id, event, mark in self._told(command.up_to_position or await self._store.head()):
            what_if.take(category, stream_id, event, mark)
            await pause.when_due()
        for _ in what_if.finish():
            await pause.when_due()
        costs = await self._priced(what_if.usages(what_if=False), PriceUsage(usages=[]), envelope)
        asked = PriceUsage(usages=[], prices=command.prices)
        other_costs = await self._priced(what_if.usages(what_if=True), asked, envelope)
        report = what_if.report(costs, other_costs, round(time.monotonic() - began, 3))
        return CommandReply(data=msgspec.to_builtins(report))

    async def _told(self, up_to: int) -> AsyncIterator[tuple[str, UUID, Event, Mark]]:
        position = 0
        while page := await self._store.read(after=position, up_to=up_to, categories=("job", "attempt"), limit=PAGE):
            for one in page:
                event = catalogue.decode(one) if one.type in _TOLD else None
                if event is not None:
                    yield one.category, _stream_id(one), event, Mark(one.global_position, one.recorded_at)
            position = page[-1].global_position

    async def _priced(self, usages: list[Usage], asked: PriceUsage, envelope: CommandEnvelope) -> dict[str, int]:
        """What the usages cost by group. Billing says: it alone rounds money."""
        costs: dict[str, int] = {}
        for first in range(0, len(usages), USAGES_PER_ASK):
            reply = await self._sender.send(
                "billing",
                msgspec.structs.replace(asked, usages=usages[first : first + USAGES_PER_ASK]),
                correlation_id=envelope.correlation_id,
                causation_id=envelope.command_id,
                actor=envelope.actor,
                timeout_s=PRICE_TIMEOUT_S,
            )
            for group, amount in msgspec.convert(reply.data["groups"], dict[str, int]).items():
                costs[group] = costs.get(group, 0) + amount
        return costs


class _Pause:
    """Lets the process's other work run, after every SLICE_S of this one."""

    def __init__(self) -> None:
        self._due = time.monotonic() + SLICE_S

    async def when_due(self) -> None:
        """Returns at once, or after everybody else who is ready had a turn."""
        if time.monotonic() >= self._due:
            await asyncio.sleep(0)
            self._due = time.monotonic() + SLICE_S
