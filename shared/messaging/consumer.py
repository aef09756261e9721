"""Consumers: a durable's events in log order, in one active replica, exactly once in effect.

JetStream is the fast road and the log is the truth: what JetStream does not deliver is read from the log. So a wiped,
silent or absent JetStream makes a consumer slower and never wrong.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import asyncpg
import msgspec
import nats.errors
import structlog

from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import EventStore
from shared.eventstore.outages import OUTAGES
from shared.messaging import gap
from shared.messaging.handling import EventHandling, Retries, Stopping, Subscription
from shared.messaging.inbox import QUERIES, Inbox
from shared.messaging.pull import MakePull, Message
from shared.messaging.right_of_way import RightOfWay
from shared.observability import metrics, names
from shared.problems import Unavailable

PAGE = 500
_PRUNE_EVERY = 5_000
_PATIENCE_POLLS = 3
_GRACE_S = 0.1
_STANDBY_POLL_S = 0.05
_CLOSE_S = 5.0

Connect = Callable[[], Awaitable[asyncpg.Connection]]

log = structlog.stdlib.get_logger()


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a consumer waits for what, in seconds."""

    poll_s: float = 1.0
    """Without a message for so long, the log is asked."""
    tick_s: float = 0.25
    """How often the pull is looked at, whether or not something has arrived."""
    takeover_s: float = 0.5
    """How often a standby tries to become the active replica."""
    retries: Retries = Retries()


class Consumer:
    """One durable in this process: active while its session holds the durable's lock, else standing by."""

    def __init__(
        self,
        subscription: Subscription,
        *,
        store: EventStore,
        pull: MakePull,
        pool: asyncpg.Pool,
        connect: Connect,
        pace: Pace | None = None,
        right_of_way: RightOfWay | None = None,
    ) -> None:
        self.durable = subscription.durable
        self._subscription = subscription
        self._store = store
        self._make_pull = pull
        self._pool = pool
        self._connect = connect
        self._pace = pace or Pace()
        self._right_of_way = right_of_way or RightOfWay()
        self._position = 0
        self._active = False
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._urgent = asyncio.Event()
        self._store_id = UUID(int=0)
        self._in_hand: list[gap.Delivery] = []

    @property
    def position(self) -> int:
        """Every event of the durable's categories up to here is handled; as of the last look if standing by."""
        return self._position

    @property
    def is_active(self) -> bool:
        """Whether this replica is the one that handles events."""
        return self._active

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Whether everything up to `position` was handled, here or in the active replica, within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._position < position:
                    await self._wait_active() if self._active else await self._wait_standby()
        except OUTAGES:  # TimeoutError is one of them
            return False
        return True

    async def lag(self) -> int:
        """How many events of its categories lie behind the log's head, counted up to one page."""
        checkpoint = await self._pool.fetchval(QUERIES.read_checkpoint, self.durable.name) or 0
        behind = await self._store.read(after=checkpoint, categories=self.durable.categories, limit=PAGE)
        return len(behind)

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until `stop` is set and the event in hand is done. Outages are waited out; a bug raises."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wake_at(stop))
            tasks.create_task(self._take_turns(stop))

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._hurry()

    async def _take_turns(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._take_turn(stop)
            except Stopping:
                return
            except (Unavailable, nats.errors.Error, *OUTAGES) as error:
                log.warning("consumer.turn.ended", durable=self.durable.name, error=repr(error))
                await self._sleep(stop, self._pace.takeover_s)

    async def _take_turn(self, stop: asyncio.Event) -> None:
        async with self._session() as inbox:
            while not await inbox.try_lock():
                if stop.is_set():
                    return
                await self._sleep(stop, self._pace.takeover_s)
            self._position = await inbox.start()
            self._store_id = await self._store.store_id()
            self._active = True
            log.info("consumer.turn.begun", durable=self.durable.name, position=self._position)
            try:
                await self._consume(inbox, stop)
            finally:
                self._active = False

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Inbox]:
        connection = await self._connect()
        try:
            yield Inbox(connection, self.durable)
        finally:
            try:
                await connection.close(timeout=_CLOSE_S)
            except OUTAGES:
                connection.terminate()

    async def _consume(self, inbox: Inbox, stop: asyncio.Event) -> None:
        handling = self._handling(inbox, stop)
        pull = self._make_pull(self.durable, self._wake.set)
        unfed = 0
        pruned_at = self._position
        try:
            await self._look_into_log(inbox, handling)
            looked_at = self._now_s()
            while not stop.is_set():
                self._wake.clear()
                await pull.ask()
                if messages := pull.take():
                    await self._handle_messages(messages, inbox, handling)
                    unfed, looked_at = 0, self._now_s()
                elif self._urgent.is_set() or self._now_s() >= looked_at + self._pace.poll_s:
                    unfed = unfed + 1 if await self._look_into_log(inbox, handling) else 0
                    self._urgent.clear()  # who waits for what came meanwhile asks again
                    looked_at = self._now_s()
                else:
                    await self._wait_for_wake()
                if unfed >= _PATIENCE_POLLS:
                    log.warning("consumer.pull.restarted", durable=self.durable.name, position=self._position)
                    await pull.restart()
                    unfed = 0
                if self._position - pruned_at >= _PRUNE_EVERY:
                    await inbox.prune(self._position)
                    pruned_at = self._position
        finally:
            await pull.close()

    def _handling(self, inbox: Inbox, stop: asyncio.Event) -> EventHandling:
        return EventHandling(
            self._subscription,
            inbox,
            retries=self._pace.retries,
            handled=self._move,
            keep_alive=self._extend_deadlines,
            give_way=partial(self._right_of_way.give_way, unless=self._urgent),
            stop=stop,
        )

    async def _handle_messages(self, messages: Sequence[Message], inbox: Inbox, handling: EventHandling) -> None:
        read = [gap.read(message, self._store_id) for message in messages]
        self._in_hand = [delivery for delivery in read if delivery is not None]
        fresh = await self._fresh(self._in_hand, inbox)
        metrics.redeliveries.add(len(self._in_hand) - len(fresh), {names.DURABLE: self.durable.name})
        if len(read) > len(self._in_hand) or not gap.is_contiguous(self._position, fresh, self.durable):
            await self._fill_from_log(max((d.event.global_position for d in fresh), default=0), inbox, handling)
            fresh = await self._fresh(fresh, inbox)
        await handling.handle([delivery.event for delivery in fresh])
        for message in messages:
            await message.ack()
        self._in_hand = []

    async def _fresh(self, deliveries: Sequence[gap.Delivery], inbox: Inbox) -> list[gap.Delivery]:
        by_id = {delivery.event.event_id: delivery for delivery in deliveries}
        unhandled = await inbox.unhandled([delivery.event for delivery in by_id.values()], self._position)
        return [by_id[event.event_id] for event in unhandled]

    async def _look_into_log(self, inbox: Inbox, handling: EventHandling) -> int:
        """Handles what the log has and JetStream has not brought; the number of such events."""
        head = await self._store.head()
        metrics.projection_lag.set(max(0, head - self._position), {names.DURABLE: self.durable.name})
        filled = await self._fill_from_log(head, inbox, handling)
        if head > self._position:
            await inbox.raise_checkpoint(head)
            self._move(head)
        return filled

    async def _fill_from_log(self, up_to: int, inbox: Inbox, handling: EventHandling) -> int:
        filled = 0
        while self._position < up_to:
            page = await self._read_log(up_to)
            if not page:
                break
            await handling.handle(await inbox.unhandled(page, self._position))
            self._move(page[-1].global_position)
            filled += len(page)
        metrics.log_fills.add(filled, {names.DURABLE: self.durable.name})
        return filled

    async def _read_log(self, up_to: int) -> list[RecordedEvent]:
        return await self._store.read(after=self._position, up_to=up_to, categories=self.durable.categories, limit=PAGE)

    def _move(self, position: int) -> None:
        if position > self._position:
            self._position = position
            self._moved.set()
            self._moved = asyncio.Event()

    async def _extend_deadlines(self) -> None:
        for delivery in self._in_hand:
            await delivery.message.in_progress()

    async def _wait_for_wake(self) -> None:
        """Until a message, a nudge or the stop; not longer than the pull may go without a look at it."""
        try:
            async with asyncio.timeout(min(self._pace.tick_s, self._pace.poll_s)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _wait_active(self) -> None:
        """Until the position moves; if it does not soon, the log is asked without waiting for JetStream."""
        moved = self._moved
        if self._right_of_way.is_claimed:
            self._hurry()
        try:
            async with asyncio.timeout(_GRACE_S):
                await moved.wait()
        except TimeoutError:
            self._hurry()

    def _hurry(self) -> None:
        """Somebody waits for this consumer: it neither rests nor waits for JetStream."""
        self._urgent.set()
        self._wake.set()

    async def _wait_standby(self) -> None:
        read = await self._pool.fetchval(QUERIES.read_checkpoint, self.durable.name)
        self._position = max(self._position, read or 0)
        await asyncio.sleep(_STANDBY_POLL_S)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    @staticmethod
    async def _sleep(stop: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            return
