"""The simulation's Postgres answers as the real one: the same named queries in random order give the same rows."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.storage.outbound.reports import SQL as STORAGE
from shared.clock import utc_now
from shared.eventstore.memory import MemoryEventStore
from shared.eventstore.postgres import PostgresEventStore
from tests.sim.chaos import Chaos
from tests.sim.connection import MemoryPool
from tests.sim.database import Database
from tests.sim.process import Process
from tests.sim.twins import TWINS, load
from tests.support.log import LogDatabase, a_fact, a_job_stream, an_append

load()
QUERIES = {place.removeprefix("sql:"): text for text, (place, _) in TWINS.items()}
CALLS = 250
T0 = datetime(2026, 11, 22, tzinfo=UTC)
DAY = date(2026, 11, 22)
SERVICES = {
    "inbox": "billing",
    "scheduler": "scheduler",
    "market": "scheduler",
    "bridge": "provider_bridge",
    "billing": "billing",
    "storage": "storage",
    "gateway": "gateway",
}
HELD_ELSEWHERE = {
    "inbox.try_lock": "a session lock: test_a_session_lock_is_free_again_when_its_session_ends",
    "log.try_lead": "the same",
    "bridge.holds_event_of": "reads the log: test_the_relays_queries_see_the_same_log",
}
OPAQUE = {"objects", "datasets"}
"""Tables of which the twins keep the values as they came."""


class Draw:
    """Arguments from small sets, so that calls meet each other's rows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance, no secret
        self._next = 0

    def id(self) -> UUID:
        return UUID(int=self.random.randint(1, 6))

    def ids(self) -> list[UUID]:
        return self.random.sample([UUID(int=number) for number in range(1, 7)], self.random.randint(1, 4))

    def word(self, *words: str) -> str:
        return self.random.choice(words)

    def number(self, below: int = 6) -> int:
        return self.random.randrange(below)

    def new(self) -> int:
        """A number that was not drawn before."""
        self._next += 1
        return self._next

    def at(self) -> datetime:
        return T0 + timedelta(minutes=self.random.randrange(10))

    def maybe_at(self) -> datetime | None:
        return self.random.choice([None, self.at()])

    def flag(self) -> bool:
        return self.random.random() < 0.5


def _queue_rows(d: Draw) -> tuple[Any, ...]:
    rows = [
        (
            job_id,
            f"user-{job_id.int % 2}",
            "local",
            10 * (job_id.int % 3),
            d.word("preparing", "queued", "queued", "holding", "completing"),
            d.new(),
            d.at(),
            d.maybe_at(),
            d.number(),
            d.random.choice([None, "user_limit", "retry_delay", "global_limit"]),
        )
        for job_id in d.ids()
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


def _limits(d: Draw) -> tuple[Any, ...]:
    return (d.at(), d.number(), ["user-0"], [d.number(3)], d.number(3))


def _reports(d: Draw) -> tuple[Any, ...]:
    seqs = d.random.sample(range(1, 9), 3)
    return (DAY, d.id(), d.id(), d.number(), seqs, ["log"] * 3, [T0] * 3, [b"{}"] * 3, d.number(3))


ARGUMENTS: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    "inbox.ensure_checkpoint": lambda d: (d.word("a", "b"),),
    "inbox.read_checkpoint": lambda d: (d.word("a", "b"),),
    "inbox.lock_checkpoint": lambda d: (d.word("a", "b"),),
    "inbox.raise_checkpoint": lambda d: (d.word("a", "b"), d.number()),
    "inbox.claim_events": lambda d: (d.word("a", "b"), ids := d.ids(), [one.int for one in ids]),
    "inbox.already_handled": lambda d: (d.word("a", "b"), d.ids()),
    "inbox.prune_inbox": lambda d: (d.word("a", "b"), d.number(4)),
    "inbox.park_event": lambda d: (d.word("a", "b"), d.number(), d.id(), "type", "stream", d.word("r", "s")),
    "scheduler.ensure_checkpoint": lambda _: ("queue",),
    "scheduler.lock_queue": lambda _: ("queue",),
    "scheduler.raise_checkpoint": lambda d: ("queue", d.number()),
    "scheduler.read_jobs": lambda d: (d.ids(),),
    "scheduler.read_queue": lambda _: (),
    "scheduler.read_holding": lambda _: (),
    "scheduler.read_next": _limits,
    "scheduler.read_mistold": lambda d: (*_limits(d), d.ids()),
    "scheduler.next_due": lambda d: (d.at(),),
    "scheduler.save_jobs": _queue_rows,
    "scheduler.drop_jobs": lambda d: (d.ids()[:1],),
    "market.save_offers": lambda d: (d.word("p", "q"), d.word("[]", "[1]").encode()),
    "market.save_suspension": lambda d: (d.word("p", "q"), d.maybe_at(), d.word("", "why")),
    "market.save_breaker": lambda d: (d.word("p", "q"), d.maybe_at()),
    "market.note_attempt": lambda d: (d.id(), d.word("p", "q"), d.word("h", "i"), d.number()),
    "market.note_intent": lambda d: (d.id(), d.at()),
    "market.note_start": lambda d: (d.id(), d.at()),
    "market.forget_attempt": lambda d: (d.id(),),
    "market.add_to_record": lambda d: (
        d.word("p", "q"),
        d.word("h", "i"),
        d.number(),
        float(d.number()),
        d.number(),
        d.number(),
        d.number(),
        float(d.number()),
    ),
    "market.read_providers": lambda _: (),
    "market.read_records": lambda _: (),
    "bridge.take_lease": lambda d: (
        d.id(),
        d.number(3),
        d.word("one", "two"),
        d.random.choice([None, "x", "y"]),
        d.random.choice([-5.0, 5000.0]),
    ),
    "bridge.renew_leases": lambda d: (ids := d.ids(), [d.number() for _ in ids], d.word("one", "two"), 5000.0),
    "bridge.release_leases": lambda d: (ids := d.ids(), [d.number() for _ in ids], d.word("one", "two")),
    "bridge.lock_lease": lambda d: (d.id(), d.number(), d.word("one", "two")),
    "bridge.holds_lease": lambda d: (d.id(), d.number(), d.word("one", "two"), d.random.choice([0.0, 9000.0])),
    "bridge.drop_lease": lambda d: (d.id(),),
    "bridge.drop_ended_leases": lambda _: (),
    "bridge.due_attempts": lambda d: (d.word("one", "two"), ["x"], 100),
    "bridge.live_attempts": lambda d: (d.word("local", "elsewhere"), d.random.randint(1, 9)),
    "bridge.insert_attempt": lambda d: (d.id(), d.id(), 1, "local", T0, d.new(), d.random.random() < 0.5),
    "bridge.change_attempt": lambda d: (
        d.id(),
        d.random.choice([None, "starting", "accepted", "running", "ending", "ended"]),
        d.random.choice([None, d.number()]),
        d.random.choice([None, "one"]),
        d.random.choice([None, "ref"]),
        d.random.choice([None, None, "lost", "failed"]),
        d.maybe_at(),
        d.maybe_at(),
        d.random.choice([None, True, False]),
        d.new(),
    ),
    "billing.claim_account": lambda d: (d.id(), d.word("s", "t"), "2026-11"),
    "billing.read_claim": lambda d: (d.id(),),
    "billing.open_account": lambda d: (f"account-{d.new()}", "ann", "2026-11", d.random.choice([None, -5])),
    "billing.add_entry": lambda d: (d.new(), 1, "s", d.id(), "reserved", "spent", d.number(), T0),
    "billing.add_to_balance": lambda d: (d.word("s", "t"), d.word("spent", "reserved"), d.number() - 3),
    "billing.add_job": lambda d: (UUID(int=100 + d.new()), "s", d.number(), d.number()),
    "billing.add_usage": lambda d: (UUID(int=100 + d.number(40)), d.number(), d.number()),
    "billing.capture_job": lambda d: (UUID(int=100 + d.number(40)), d.number(), d.at()),
    "billing.charge_late": lambda d: (UUID(int=100 + d.number(40)), d.number()),
    "billing.release_job": lambda d: (UUID(int=100 + d.number(40)), d.number()),
    "storage.enqueue_pack_job": lambda d: (d.id(), b"c", b"e", d.at()),
    "storage.claim_pack_job": lambda d: (d.id(), at := d.at(), at + timedelta(minutes=d.number(3))),
    "storage.renew_pack_claim": lambda d: (d.id(), d.id(), d.at()),
    "storage.release_pack_claim": lambda d: (d.id(), d.id(), d.at(), "why", d.number(2)),
    "storage.finish_pack_job": lambda d: (d.id(), d.at()),
    "storage.upsert_object": lambda d: (
        "outputs",
        d.word("k", "l"),
        d.number(),
        d.id(),
        None,
        "n",
        1,
        "ab",
        None,
        "text/plain",
        T0,
    ),
    "storage.insert_dataset": lambda d: (d.word("ab", "cd"), 1, 1, T0),
    "storage.lock_report_job": lambda d: (d.id(),),
    "storage.open_report_attempt": lambda d: (d.id(), d.id(), DAY, d.at()),
    "storage.insert_reports": _reports,
    "storage.contiguous_ack": lambda d: (DAY, d.id(), d.number(3)),
    "storage.save_report_ack": lambda d: (d.id(), d.number()),
    "storage.save_report_cursor": lambda d: (d.id(), d.number()),
    "gateway.claim_key": lambda d: ("ann", d.word("k", "l"), b"x", d.id(), at := d.at(), at + timedelta(minutes=2)),
    "gateway.claim_of": lambda d: ("ann", d.word("k", "l"), d.at()),
    "gateway.forget_expired_claims": lambda d: (T0 + timedelta(minutes=d.number(4)),),
}


def calm_process(service: str) -> Process:
    chaos = Chaos(0, asyncio.get_running_loop())
    chaos.ceased = chaos.is_instant = True
    return Process(f"{service}/0.1", chaos, skew_s=0.0, died=lambda _: None)


@pytest.fixture(params=sorted(SERVICES))
async def both(request: pytest.FixtureRequest, log_database: LogDatabase) -> AsyncIterator[tuple[str, Any, Database]]:
    """A family of queries, a connection of its service, and an empty database in memory."""
    service = SERVICES[request.param]
    connection = await asyncpg.connect(log_database.dsn(service))
    if request.param == "storage":
        await connection.execute(STORAGE.ensure_report_partition, DAY)
    yield request.param, connection, Database(MemoryEventStore(), utc_now)
    await connection.close()


def plain(rows: list[Any]) -> list[list[Any]]:
    return [list(row.values()) for row in rows]


def is_ordered(query: str) -> bool:
    return "order by" in query.lower().rpartition("select")[2]


@pytest.mark.parametrize("seed", range(2))
async def test_twins_answer_as_postgres_does(both: tuple[str, Any, Database], seed: int) -> None:
    family, connection, database = both
    pool = MemoryPool(database, calm_process(SERVICES[family]))
    draw = Draw(seed)
    names = [name for name in ARGUMENTS if name.startswith(f"{family}.")]
    for _ in range(CALLS):
        name = draw.random.choice(names)
        arguments = ARGUMENTS[name](draw)
        query = QUERIES[name]
        real, twin = plain(await connection.fetch(query, *arguments)), plain(await pool.fetch(query, *arguments))
        if not is_ordered(query):
            real, twin = sorted(real, key=repr), sorted(twin, key=repr)
        assert twin == real, (name, arguments)
    for table, rows in database.schema(SERVICES[family]).items():
        if table not in OPAQUE:
            assert await differences(connection, table, list(rows.values())) == []


async def differences(connection: asyncpg.Connection, table: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Rows in memory that Postgres lacks, in the columns that both have; the counts if those differ."""
    stored = [dict(row) for row in await connection.fetch(f"SELECT * FROM {table}")]  # noqa: S608 - our own table names
    if len(stored) != len(rows):
        return [table, len(stored), len(rows)]
    columns = [one for one in (rows[0] if rows else {}) if stored and one in stored[0] and not is_clock(table, one)]
    seen = [[row[column] for column in columns] for row in stored]
    return [row for row in rows if [row[column] for column in columns] not in seen]


def is_clock(table: str, column: str) -> bool:
    """Columns that hold the server's own time."""
    return (table, column) in {("leases", "lease_until"), ("parked", "parked_at")}


def twins() -> Iterator[str]:
    return (name for name in sorted(QUERIES) if name not in HELD_ELSEWHERE and not name.startswith("log."))


def test_every_twin_is_held_against_postgres() -> None:
    assert sorted(ARGUMENTS) == list(twins())


async def test_the_relays_queries_see_the_same_log(log_database: LogDatabase) -> None:
    memory = MemoryEventStore()
    pool = MemoryPool(Database(memory, utc_now), calm_process("relay"))
    connection = await asyncpg.connect(log_database.superuser_dsn)
    await connection.execute("SET search_path = log")
    async with PostgresEventStore.open(log_database.dsn("scheduler")) as store:
        stream = a_job_stream()
        for count in (1, 3, 2):
            append = an_append(stream if count == 1 else a_job_stream(), *(a_fact() for _ in range(count)))
            await store.append(append)
            await memory.append(append)
    calls: list[tuple[str, tuple[Any, ...], str | None]] = [
        ("log.head", (), None),
        ("bridge.holds_event_of", (stream, ["job.late_fact.v1", "job.queued.v1"]), None),
        ("bridge.holds_event_of", (stream, ["job.queued.v1"]), None),
        ("log.read_all", (1, 5, 3), "global_position"),
        ("log.previous_in_category", ("job", 4), None),
        ("log.previous_in_category", ("account", 4), None),
        ("log.published_position", (), None),
        ("log.remember_published", (4,), None),
        ("log.published_position", (), None),
        ("log.last_seal", (), "to_position"),
        ("log.add_seal", (1, 2, 2, b"x" * 32), None),
        ("log.last_seal", (), "to_position"),
        ("log.hashes_after", (2, 3), "global_position"),
    ]
    for name, arguments, column in calls:
        real, twin = await connection.fetch(QUERIES[name], *arguments), await pool.fetch(QUERIES[name], *arguments)
        if column is None:
            assert plain(twin) == plain(real), name
        else:
            assert [row[column] for row in twin] == [row[column] for row in real], name
    asked = {name for name, _, _ in calls} | {"log.event_at", "log.store_id", "log.try_lead"}
    assert {name for name in QUERIES if name.startswith("log.")} <= asked
    assert len(await connection.fetch(QUERIES["log.event_at"], 3)) == len(await pool.fetch(QUERIES["log.event_at"], 3))
    await connection.close()


async def test_a_session_lock_is_free_again_when_its_session_ends(log_database: LogDatabase) -> None:
    pool = MemoryPool(Database(MemoryEventStore(), utc_now), calm_process("billing"))
    for name, arguments in (("inbox.try_lock", ("d",)), ("log.try_lead", ())):
        real = [await asyncpg.connect(log_database.dsn("billing")) for _ in range(2)]
        for first, second in (real, [await pool.connect(), await pool.connect()]):
            assert await first.fetchval(QUERIES[name], *arguments)
            assert not await second.fetchval(QUERIES[name], *arguments)
            await first.close()
            assert await second.fetchval(QUERIES[name], *arguments)
            await second.close()
