"""A Hypothesis machine over store, relay and projection: whatever happens to them, the rows are a fold of the log.

The parts are the real ones (store, `Publisher`, `Consumer`, `Inbox`, handling, parking, `rebuild`); a `Backend` says
where log, stream and rows are kept: in memory, or on a real Postgres and NATS.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

import nats.errors
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.contracts.account import AccountOpened
from shared.contracts.admin import ReplayParked
from shared.contracts.attempt import AttemptLateReport
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import Event, JobLateFact
from shared.contracts.subjects import Durable
from shared.eventstore.acks import PubAck
from shared.eventstore.api import Append, Appended, EventStore, VersionConflict
from shared.eventstore.auditor import Auditor
from shared.eventstore.hashing import StoredEvent
from shared.eventstore.publisher import Publisher
from shared.eventstore.rows import encode_meta
from shared.eventstore.topology import POSITION, ForeignStreamError, StreamEnd
from shared.messaging.consumer import Consumer, Pace
from shared.messaging.handling import EventHandling, Retries, Subscription
from shared.messaging.inbox import QUERIES as INBOX
from shared.messaging.inbox import Inbox
from shared.messaging.parking import replay_parked
from shared.messaging.right_of_way import RightOfWay
from shared.projection import Projection, rebuild
from tests.support.contract_structs import BEGAN

T = TypeVar("T")
SERVICE = "billing"
FOLDS = "machine_folds"
ADD_TO_FOLD = f"""INSERT INTO {FOLDS} (stream, events, positions, squares) VALUES ($1, 1, $2, $3)
ON CONFLICT (stream) DO UPDATE SET events = {FOLDS}.events + 1, positions = {FOLDS}.positions + excluded.positions,
squares = {FOLDS}.squares + excluded.squares"""  # noqa: S608 - a name from above
READ_FOLDS = f"SELECT stream, events, positions, squares FROM {FOLDS} ORDER BY stream"  # noqa: S608
IDLE_LIMIT_S = 60.0
RETRIES = Retries(tries=3, first_pause_s=0.0005, longest_pause_s=0.001)
_SAMPLES: dict[str, Callable[[], Event]] = {
    "job": lambda: JobLateFact(fact="something", attempt_id=None, at=BEGAN),
    "attempt": lambda: AttemptLateReport(report_type="done", at=BEGAN),
    "account": lambda: AccountOpened(owner="a", month="2026-11", floor_micro_usd=None, opened_at=BEGAN),
}


class Publishing(Protocol):
    """What `AckInbox` can do."""

    async def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[PubAck]:
        """Hands a message over; the future is its answer."""
        ...


class Delivered:
    """A message of the stream, as the consumer gets it; `fails` lets its acknowledgement break the connection."""

    def __init__(self, subject: str, headers: dict[str, str], data: bytes) -> None:
        self.subject = subject
        self.headers = headers
        self.data = data
        self.fails = False

    async def ack(self) -> None:
        """Says that it is handled, if the connection still holds."""
        if self.fails:
            self.fails = False
            raise nats.errors.ConnectionClosedError

    async def in_progress(self) -> None:
        """Nobody counts its time."""


class Backend(Protocol):
    """Where the machine's log, stream and rows are kept."""

    pool: Any
    relay_connection: Any

    @property
    def store(self) -> EventStore:
        """What the consumer reads."""
        ...

    def writer(self, category: str) -> EventStore:
        """The store under the role that owns a category."""
        ...

    async def connect(self) -> Any:
        """A session for the consumer."""
        ...

    async def open_stream(self) -> tuple[Publishing, StreamEnd]:
        """The stream of events from where it ends; ForeignStreamError when it must be made anew."""
        ...

    async def wipe_stream(self) -> None:
        """The stream is gone, and made anew, empty."""
        ...

    async def remember(self, position: int) -> None:
        """The relay's checkpoint."""
        ...

    async def stream(self) -> list[Delivered]:
        """Every message of the stream, in its order."""
        ...

    async def close(self) -> None:
        """Ends everything."""
        ...


class _Severed:
    """An inbox whose connection breaks after so many messages."""

    def __init__(self, inner: Publishing, after: int) -> None:
        self._inner = inner
        self._left = after

    async def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[PubAck]:
        if self._left == 0:
            raise nats.errors.ConnectionClosedError
        self._left -= 1
        return await self._inner.send(subject, payload, headers)


class HandedPull:
    """Gives the consumer what the machine chose, and says when all of it was handled or the turn ended."""

    def __init__(self) -> None:
        self.arrived: Callable[[], None] = lambda: None
        self.idle = asyncio.Event()
        self._queue: list[Delivered] = []

    def make(self, _durable: Durable, arrived: Callable[[], None]) -> "HandedPull":
        """A consumer's `MakePull`."""
        self.arrived = arrived
        return self

    def hand(self, messages: Sequence[Delivered]) -> None:
        """Lets these arrive together."""
        self.idle.clear()
        self._queue += messages
        self.arrived()

    def take(self) -> list[Delivered]:
        """What was handed since the last call."""
        taken, self._queue = self._queue, []
        return taken

    async def ask(self) -> None:
        """The consumer is at the top of its loop."""
        if not self._queue:
            self.idle.set()

    async def restart(self) -> None:
        """Nothing was asked of anybody."""

    async def close(self) -> None:
        """The turn ended: what was on its way is lost."""
        self._queue = []


def stored_of(event: RecordedEvent) -> StoredEvent:
    """The row again, from what readers get of it."""
    return StoredEvent(
        global_position=event.global_position,
        event_id=event.event_id,
        stream=event.stream,
        stream_version=event.stream_version,
        type=event.type,
        data=bytes(event.data),
        meta=encode_meta(event.meta),
        correlation_id=event.correlation_id,
        recorded_at=event.recorded_at,
        hash=event.hash,
    )


class LogMachine(RuleBasedStateMachine):
    """Subclasses say how a backend is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backend = self.run(self.open_backend())
        self.versions: dict[str, int] = {}
        self.poisoned: set[UUID] = set()
        self.publisher: Publisher | None = None
        self.fault: tuple[str, int] | None = None
        self.wipes_left = 2
        self.reacted: set[UUID] = set()
        self.pull = HandedPull()
        self.stop = asyncio.Event()

    async def open_backend(self) -> Backend:
        """A fresh, empty one."""
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs to its end on the machine's own loop."""
        return self.loop.run_until_complete(work)

    # ---- the consumer ------------------------------------------------------------------------------------------------

    @initialize(
        categories=st.sampled_from([("job",), ("attempt", "job"), ("account", "attempt", "job")]),
        before=st.integers(0, 3),
        after=st.integers(2, 8),
        pages=st.booleans(),
        reactions_at_once=st.sampled_from([0, 1, 4]),
    )
    def start(
        self, categories: tuple[str, ...], before: int, after: int, reactions_at_once: int, *, pages: bool
    ) -> None:
        """A consumer that begins in a log that has begun, with something to read soon."""
        self.append_in_turn(before)
        self.start_consumer(categories, reactions_at_once, pages=pages)
        self.append_in_turn(after)
        self.run(self.publish(20))

    def append_in_turn(self, count: int) -> None:
        for number in range(count):
            category = ["job", "attempt", "job", "account", "job"][number % 5]
            self.append_at_once([(category, number % 2)], 1, 0, poison=False)

    def start_consumer(self, categories: tuple[str, ...], reactions_at_once: int, *, pages: bool) -> None:
        self.durable = Durable(service=SERVICE, purpose="machine", categories=categories)
        self.subscription = Subscription(
            durable=self.durable,
            react=self.react if reactions_at_once else None,
            stories_at_once=max(1, reactions_at_once),
            project=self.project,
            project_page=self.project_page if pages else None,
        )
        consumer = Consumer(
            self.subscription,
            store=self.backend.store,
            pull=self.pull.make,
            pool=self.backend.pool,
            connect=self.backend.connect,
            pace=Pace(
                poll_s=3600,
                takeover_s=0.005,
                retries=RETRIES,
            ),
        )
        self.consumer = consumer
        self.running = self.loop.create_task(consumer.run(self.stop))
        self.run(self.until_idle())

    async def until_idle(self) -> None:
        """Until the consumer has done what there was to do."""
        waiting = asyncio.ensure_future(self.pull.idle.wait())
        await asyncio.wait({waiting, self.running}, timeout=IDLE_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done(), self.running.exception() if self.running.done() else "the consumer never came to rest"

    async def react(self, event: RecordedEvent) -> None:
        """Happens before the rows, perhaps more than once; another story may be reacted to meanwhile."""
        await asyncio.sleep(0)
        self.reacted.add(event.event_id)

    async def project(self, connection: Any, event: RecordedEvent) -> None:
        """Sums for each stream, which nothing protects from an event that is applied twice or never."""
        await connection.execute(ADD_TO_FOLD, event.stream, event.global_position, event.global_position**2)
        if event.event_id in self.poisoned:
            raise RuntimeError("poisoned")
        if self.fault is None:
            return
        kind, left = self.fault
        self.fault = (kind, left - 1) if left else None
        if left == 0 and kind == "severed":
            connection.terminate()
            raise ConnectionResetError("severed between rows and commit")
        if left == 0 and kind == "bug":
            raise RuntimeError("once")

    async def project_page(self, connection: Any, events: Sequence[RecordedEvent]) -> None:
        """The same for events that are committed together."""
        for event in events:
            await self.project(connection, event)

    # ---- rules: the log ----------------------------------------------------------------------------------------------

    def an_append(self, stream: str, count: int, expected_version: int) -> Append:
        category = stream.partition("-")[0]
        return Append(
            stream=stream,
            expected_version=expected_version,
            events=[_SAMPLES[category]() for _ in range(count)],
            meta=EventMetadata(actor="user:machine"),
            correlation_id=uuid4(),
        )

    async def try_append(self, append: Append) -> Appended | VersionConflict:
        try:
            return await self.backend.writer(append.stream.partition("-")[0]).append(append)
        except VersionConflict as conflict:
            return conflict

    @rule(
        streams=st.lists(
            st.tuples(st.sampled_from(["job", "job", "attempt", "account"]), st.integers(1, 2)), min_size=1, max_size=4
        ),
        count=st.integers(1, 3),
        stale=st.sampled_from([0, 0, 0, -1, 1]),
        poison=st.sampled_from([False, True]),
    )
    def append_at_once(self, streams: list[tuple[str, int]], count: int, stale: int, *, poison: bool) -> None:
        """Several writers at the same moment; those of one stream race, and exactly one can win."""
        names = [f"{category}-{number}" for category, number in streams]
        expected = {name: max(0, self.versions.get(name, 0) + stale) for name in names}
        asked = [self.an_append(name, count, expected[name]) for name in names]

        async def all_at_once() -> list[Appended | VersionConflict]:
            return await asyncio.gather(*(self.try_append(one) for one in asked))

        outcomes = self.run(all_at_once())
        for name in dict.fromkeys(names):
            won = [
                outcome
                for one, outcome in zip(asked, outcomes, strict=True)
                if one.stream == name and isinstance(outcome, Appended)
            ]
            assert len(won) == (1 if expected[name] == self.versions.get(name, 0) else 0)
            for outcome in won:
                self.versions[name] = self.versions.get(name, 0) + count
                assert outcome.version == self.versions[name]
                assert outcome.last_position - outcome.first_position == count - 1
                if poison:
                    (last,) = self.run(self.backend.store.read(after=outcome.last_position - 1, limit=1))
                    self.poisoned.add(last.event_id)

    # ---- rules: the relay --------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 8), severed_after=st.sampled_from([None, None, 0, 1, 3]), remembers=st.booleans())
    def publish_some(self, count: int, severed_after: int | None, *, remembers: bool) -> None:
        """A page of the relay's, perhaps cut in the middle, or ended between publishing and remembering."""
        self.run(self.publish(count, severed_after, remembers=remembers))

    @rule()
    def relay_dies(self) -> None:
        """Another one will find where the stream ends."""
        self.publisher = None

    @precondition(lambda self: self.wipes_left > 0)
    @rule()
    def bus_is_wiped(self) -> None:
        """The relay is not told."""
        self.wipes_left -= 1
        self.run(self.backend.wipe_stream())

    async def publish(self, count: int, severed_after: int | None = None, *, remembers: bool = True) -> None:
        try:
            inbox, end = await self.backend.open_stream()
        except ForeignStreamError:
            await self.backend.wipe_stream()
            inbox, end = await self.backend.open_stream()
        known = self.publisher
        start = StreamEnd(sequence=known.sequence, position=known.position) if known else end
        # An inbox lives as long as a connection, a publisher as long as nothing went wrong.
        publisher = Publisher(
            inbox if severed_after is None else _Severed(inbox, severed_after),  # pyright: ignore[reportArgumentType] - an AckInbox
            await self.backend.store.store_id(),
            start,
        )
        self.publisher = None
        events = await self.backend.store.read(after=publisher.position, limit=count)
        try:
            if events:
                await publisher.publish(self.backend.relay_connection, events)
        except (nats.errors.Error, ForeignStreamError):
            return
        if events:
            told = (await self.backend.stream())[publisher.sequence - 1]
            assert int(told.headers[POSITION]) == publisher.position == events[-1].global_position
        if remembers:
            await self.backend.remember(publisher.position)
            self.publisher = publisher

    # ---- rules: deliveries -------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any messages of the durable in any order, any of them twice, others never."""
        self.hand_over(data)

    @rule(
        data=st.data(),
        fault=st.none() | st.tuples(st.sampled_from(["severed", "bug"]), st.integers(0, 3)),
        ack_fails=st.booleans(),
    )
    def deliver_to_the_unlucky(self, data: st.DataObject, fault: tuple[str, int] | None, *, ack_fails: bool) -> None:
        """The same, with the consumer hurt before the commit, or between commit and acknowledgement."""
        self.hand_over(data, fault, ack_fails=ack_fails)

    def hand_over(self, data: st.DataObject, fault: tuple[str, int] | None = None, *, ack_fails: bool = False) -> None:
        stream = self.run(self.our_messages())
        if not stream:
            return
        chosen = data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=8), label="delivered")
        handed = [stream[number] for number in chosen]
        handed[-1].fails = ack_fails
        self.fault = fault

        async def hand() -> None:
            self.pull.hand(handed)
            await self.until_idle()

        self.run(hand())
        self.fault = None

    async def our_messages(self) -> list[Delivered]:
        """What the durable may get; published first if there is nothing."""
        for _ in range(2):
            stream = await self.backend.stream()
            ours = [message for message in stream if message.subject.split(".")[1] in self.durable.categories]
            if ours:
                return ours
            await self.publish(20)
        return []

    @rule(data=st.data())
    def a_paused_replica_goes_on(self, data: st.DataObject) -> None:
        """It looked before others handled these events, and lost its lock without noticing: it changes nothing."""
        self.run(self.handle_again(data))

    async def handle_again(self, data: st.DataObject) -> None:
        checkpoint = await self.backend.pool.fetchval(INBOX.read_checkpoint, self.durable.name) or 0
        log = await self.backend.store.read(up_to=checkpoint, categories=self.durable.categories) if checkpoint else []
        if not log:
            return
        first = data.draw(st.integers(0, len(log) - 1), label="from")
        session = await self.backend.connect()
        handling = EventHandling(
            self.subscription,
            Inbox(session, self.durable),
            retries=RETRIES,
            handled=lambda _position: None,
            keep_alive=asyncio.Event().wait,  # pyright: ignore[reportArgumentType] - never called
            give_way=partial(RightOfWay().give_way, unless=self.stop),
            stop=self.stop,
        )
        await handling.handle(log[first:])
        await session.close()

    # ---- rules: the rows ---------------------------------------------------------------------------------------------

    async def replay(self, position: int) -> None:
        command = ReplayParked(durable=self.durable.name, position=position)
        (event,) = await self.backend.store.read(after=position - 1, limit=1)
        reason = await replay_parked(self.backend.pool, self.backend.store, [self.subscription], command)
        assert (reason is None) == (event.event_id not in self.poisoned), reason

    @rule()
    def refold(self) -> None:
        """A rebuild finds the rows as they should be, and leaves them so."""
        projection = Projection(name="m", tables=(FOLDS,), durable=self.durable, project=self.project)
        (done,) = self.run(rebuild(self.backend.pool, self.backend.store, [projection]))
        assert done.equal

    @rule(healed=st.booleans())
    def replay_what_is_parked(self, *, healed: bool) -> None:
        """With the cause mended each succeeds, else each stays where it is."""
        if healed:
            self.poisoned.clear()
        for position in self.run(self.parked()):
            self.run(self.replay(position))

    async def parked(self) -> list[int]:
        return [row["position"] for row in await self.backend.pool.fetch(INBOX.parked_positions, self.durable.name)]

    # ---- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def log_is_gapless_and_chained(self) -> None:
        log = self.run(self.backend.store.read())
        assert [event.global_position for event in log] == list(range(1, len(log) + 1))
        assert sum(self.versions.values()) == len(log)
        auditor = Auditor([], len(log))
        heads: dict[str, int] = {}
        for event in log:
            heads[event.stream] = heads.get(event.stream, 0) + 1
            assert event.stream_version == heads[event.stream]
            auditor.take(stored_of(event))
        assert heads == self.versions
        assert auditor.finish() == []

    @invariant()
    def stream_is_an_unbroken_beginning_of_the_log(self) -> None:
        told = [int(message.headers[POSITION]) for message in self.run(self.backend.stream())]
        assert told == list(range(1, len(told) + 1))

    @precondition(lambda self: hasattr(self, "consumer"))
    @invariant()
    def rows_are_the_log_up_to_the_checkpoint_but_for_the_parked(self) -> None:
        self.run(self.check_rows())

    async def check_rows(self) -> None:
        checkpoint = await self.backend.pool.fetchval(INBOX.read_checkpoint, self.durable.name) or 0
        parked = set(await self.parked())
        log = await self.backend.store.read(up_to=checkpoint) if checkpoint else []
        folds: dict[str, tuple[int, int, int]] = {}
        for event in log:
            position = event.global_position
            if event.category in self.durable.categories and position not in parked:
                events, positions, squares = folds.get(event.stream, (0, 0, 0))
                folds[event.stream] = (events + 1, positions + position, squares + position**2)
                assert self.subscription.react is None or event.event_id in self.reacted
        rows = await self.backend.pool.fetch(READ_FOLDS)
        assert {row["stream"]: (row["events"], row["positions"], row["squares"]) for row in rows} == folds

    # ---- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "consumer"):
                self.run(self.come_to_rest())
        finally:
            self.run(self.backend.close())
            self.loop.close()

    async def come_to_rest(self) -> None:
        """Left alone, everything arrives: the stream is the whole log, and the rows are all of it."""
        head = await self.backend.store.head()
        for _ in range(8):
            self.publisher = None
            await self.publish(1000)
        assert len(await self.backend.stream()) == head
        self.fault = None
        if last := await self.our_messages():
            self.pull.hand(last[-1:])
            await self.until_idle()
            checkpoint = await self.backend.pool.fetchval(INBOX.read_checkpoint, self.durable.name)
            assert checkpoint >= int(last[-1].headers[POSITION])
        self.stop.set()
        self.pull.arrived()
        await asyncio.wait_for(self.running, IDLE_LIMIT_S)
        self.poisoned.clear()
        for position in await self.parked():
            await self.replay(position)
        assert await self.parked() == []
        await self.check_rows()
