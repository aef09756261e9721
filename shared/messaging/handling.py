"""Events in chunks: react, then rows, inbox and checkpoint in one commit; retry in place, park the rest.

Reactions run in log order; where a subscription allows it, only those to one story (one correlation id) do, and several
stories go on beside each other. When anything in a chunk fails, its events are handled one by one, with a commit each.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import asyncpg
import msgspec
import structlog
from opentelemetry.trace import SpanKind

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import Durable
from shared.eventstore.api import VersionConflict
from shared.messaging.inbox import Inbox
from shared.observability import metrics, names, tracing
from shared.problems import Rejected, Unavailable

React = Callable[[RecordedEvent], Awaitable[None]]
"""Sends commands or acts, before the transaction and perhaps more than once: it must be idempotent."""

Project = Callable[[asyncpg.Connection, RecordedEvent], Awaitable[None]]
"""Writes rows in the transaction that also remembers the event: exactly once in effect."""

ProjectPage = Callable[[asyncpg.Connection, Sequence[RecordedEvent]], Awaitable[None]]
"""The same for events that are committed together, in log order: for rows that many events of a page change."""

Wants = Callable[[RecordedEvent], bool]
"""Whether an event leads to anything; those that do not are remembered without a reaction."""

_PASSING: tuple[type[Exception], ...] = (
    Unavailable,
    VersionConflict,
    ConnectionError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)

log = structlog.stdlib.get_logger()


class Stopping(Exception):  # noqa: N818 - a request, not an error
    """The consumer was asked to stop before this event was handled."""


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often an event that fails by itself is tried, and how long the pauses are. An outage is waited out."""

    tries: int = 5
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def pause_s(self, attempt: int) -> float:
        """0.1 after attempt 0, then twice as long each time."""
        return min(self.first_pause_s * 2 ** min(attempt, 16), self.longest_pause_s)


def is_passing(error: BaseException) -> bool:
    """Whether the same event may well succeed later: somebody is away, or was faster than we."""
    if isinstance(error, Rejected):
        return error.code == "version_conflict"
    return isinstance(error, _PASSING) and not isinstance(error, ValueError)  # asyncpg.DataError is an InterfaceError


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What a durable is for. `react` runs before the transaction, `project` inside it; either may be absent."""

    durable: Durable
    react: React | None = None
    wants: Wants | None = None
    """Which events `react` is called with; None: with all."""
    stories_at_once: int = 1
    """More than 1: reactions to different stories overtake each other; nothing may depend on their order."""
    project: Project | None = None
    project_page: ProjectPage | None = None
    """Does the same as `project` with each event of a page; called instead for events that are committed together."""


class EventHandling:
    """Handles a durable's events in the order given: `give_way` comes before each chunk, `handled(position)` after."""

    CHUNK = 100

    def __init__(
        self,
        subscription: Subscription,
        inbox: Inbox,
        *,
        retries: Retries,
        handled: Callable[[int], None],
        keep_alive: Callable[[], Awaitable[None]],
        give_way: Callable[[], Awaitable[None]],
        stop: asyncio.Event,
    ) -> None:
        self._subscription = subscription
        self._durable = subscription.durable
        self._inbox = inbox
        self._retries = retries
        self._handled = handled
        self._keep_alive = keep_alive
        self._give_way = give_way
        self._stop = stop
        self._reacted: set[UUID] = set()
        """Events of the chunk in hand whose reaction is done and need not be repeated, whatever fails after it."""
        self._labels = {names.DURABLE: self._durable.name}

    async def handle(self, events: Sequence[RecordedEvent]) -> None:
        """Handles the events, or raises Stopping; an outage of our own connection ends the turn."""
        for start in range(0, len(events), self.CHUNK):
            await self._give_way()
            chunk = events[start : start + self.CHUNK]
            self._reacted.clear()
            if self._stop.is_set() and self._subscription.react is not None:
                raise Stopping
            if len(chunk) == 1 or not await self._handled_together(chunk):
                for event in chunk:
                    await self._handle_one(event)

    async def _handled_together(self, events: Sequence[RecordedEvent]) -> bool:
        try:
            await self._react_to(events)
            await self._commit(events)
        except Exception as error:  # noqa: BLE001 - one by one, the event that failed shows itself
            log.info("consumer.chunk.split", durable=self._durable.name, size=len(events), error=repr(error))
            return False
        return True

    async def _react_to(self, events: Sequence[RecordedEvent]) -> None:
        """Reacts to what is wanted; raises the first error when the reactions that were under way are done."""
        lanes = self._subscription.stories_at_once
        stories: dict[UUID | None, list[RecordedEvent]] = {}
        for event in events:
            if self._is_wanted(event):
                stories.setdefault(event.correlation_id if lanes > 1 else None, []).append(event)
        errors: list[Exception] = []
        waiting = iter(stories.values())
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(lanes, len(stories))):
                tasks.create_task(self._react_to_stories(waiting, errors))
        if errors:
            raise errors[0]

    async def _react_to_stories(self, waiting: Iterator[list[RecordedEvent]], errors: list[Exception]) -> None:
        for story in waiting:
            try:
                for event in story:
                    with self._about(event):
                        await self._react_once(event)
            except Exception as error:  # noqa: BLE001 - the chunk is handled one by one, and the event shows itself
                errors.append(error)
            if errors:
                return

    async def _handle_one(self, event: RecordedEvent) -> None:
        failures = 0
        for attempt in itertools.count():
            if self._stop.is_set():
                raise Stopping
            try:
                await self._attempt(event)
            except Exception as error:
                if self._inbox.connection.is_closed():
                    raise
                failures += not is_passing(error)
                if failures >= self._retries.tries:
                    await self._park(event, error)
                    return
                self._note_retry(event, attempt, error)
            else:
                return
            await self._pause(attempt)

    def _note_retry(self, event: RecordedEvent, attempt: int, error: Exception) -> None:
        """An outage is one line; a bug shows its traceback."""
        traceback = None if is_passing(error) else error
        log.warning(
            "consumer.event.retried",
            **self._keys(event),
            **{names.ATTEMPTS: attempt + 1, names.REASON: repr(error)},
            exc_info=traceback,
        )
        metrics.retries.add(1, self._labels)

    async def _attempt(self, event: RecordedEvent) -> None:
        with self._about(event):
            if self._is_wanted(event):
                await self._react_once(event)
            await self._commit([event])

    def _is_wanted(self, event: RecordedEvent) -> bool:
        wants = self._subscription.wants
        return self._subscription.react is not None and (wants is None or wants(event))

    async def _react_once(self, event: RecordedEvent) -> None:
        if self._subscription.react is not None and event.event_id not in self._reacted:
            await self._subscription.react(event)
            self._reacted.add(event.event_id)

    @contextmanager
    def _about(self, event: RecordedEvent) -> Generator[None]:
        """Log lines and spans inside are about this event."""
        keys = self._keys(event)
        with (
            structlog.contextvars.bound_contextvars(**keys),
            tracing.span(
                names.process_event(event.type),
                kind=SpanKind.CONSUMER,
                traceparent=event.meta.traceparent,
                attributes=keys,
            ),
        ):
            yield

    async def _commit(self, events: Sequence[RecordedEvent]) -> None:
        connection = self._inbox.connection
        async with connection.transaction():
            claimed = await self._inbox.claim(events)
            new = [event for event in events if event.event_id in claimed]
            await self._project(connection, new)
        metrics.events_handled.add(len(new), self._labels)
        metrics.redeliveries.add(len(events) - len(new), self._labels)
        self._handled(events[-1].global_position)
        log.debug("consumer.events.handled", durable=self._durable.name, size=len(new))

    async def _project(self, connection: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        project, project_page = self._subscription.project, self._subscription.project_page
        if project_page is not None and events:
            await project_page(connection, events)
        elif project is not None:
            for event in events:
                await project(connection, event)

    async def _park(self, event: RecordedEvent, error: Exception) -> None:
        await self._inbox.park(event, error)
        metrics.parked.add(1, self._labels)
        log.error("consumer.event.parked", **self._keys(event), exc_info=error)
        self._handled(event.global_position)

    async def _pause(self, attempt: int) -> None:
        await self._keep_alive()
        try:
            async with asyncio.timeout(self._retries.pause_s(attempt)):
                await self._stop.wait()
        except TimeoutError:
            return

    def _keys(self, event: RecordedEvent) -> dict[str, str | int]:
        return {
            names.DURABLE: self._durable.name,
            names.EVENT_TYPE: event.type,
            names.EVENT_ID: str(event.event_id),
            names.STREAM: event.stream,
            names.POSITION: event.global_position,
            names.CORRELATION_ID: str(event.correlation_id),
        }
