"""A million events folded into job state, and read models rebuilt.

The limit is the bare way to the same events: `select` the same columns in pages by position, and decode each payload
with msgspec, one page after the other. Ours does that through `shared.eventstore.replay`, which reads the next page
meanwhile, and folds every event into its job with the scheduler's own `evolve`. Collections are as rare for both.
"""

import time
from functools import partial

import asyncpg
import msgspec

from services.billing.projections import ledger
from services.gateway.inbound import subscriptions as jobs_view
from services.provider_bridge.projections import attempts
from services.scheduler.domain.job_state import Absent, Ended, Job, evolve
from services.scheduler.projections import queue
from services.storage.projections import objects
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.job import Event
from shared.contracts.subjects import BILLING_LEDGER, SCHEDULER_QUEUE, STORAGE_OBJECTS
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.replay import rare_collections, replay
from shared.messaging.inbox import QUERIES as INBOX
from shared.projection import Projection, Rebuilt, rebuild
from tests.bench.bench import Bench, ratio_at_least
from tests.bench.past import EVENTS_PER_JOB, job_lives
from tests.bench.servers import fresh_log
from tests.support import bulk_log
from tests.support.log import LogDatabase
from tests.support.month import Shape, a_month

JOBS = 100_000
MONTH_JOBS = 400
_BARE_PAGE = 5000
PROJECTIONS = (
    *jobs_view.PROJECTIONS,
    Projection(name="queue", tables=("jobs",), durable=SCHEDULER_QUEUE, project=queue.project),
    Projection(name="ledger", tables=ledger.TABLES, durable=BILLING_LEDGER, project=ledger.project),
    Projection(name="objects", tables=objects.TABLES, durable=STORAGE_OBJECTS, project=objects.project),
    attempts.ATTEMPTS,
)
_BARE = """
select global_position, stream, type, data from log.events where global_position > $1 order by global_position limit $2
"""
_DECODERS = {name: msgspec.json.Decoder(cls) for name, cls in EVENT_TYPES.items()}


async def run(bench: Bench) -> None:
    """Events a second."""
    async with fresh_log(bench) as database:
        bench.say(f"writing {JOBS * EVENTS_PER_JOB} events")
        written = await bulk_log.write(database.superuser_dsn, job_lives(JOBS))
        bench.say(f"written in {written.duration_s:.0f} s")
        async with asyncpg.create_pool(database.dsn("scheduler"), min_size=2, max_size=4) as pool:
            rounds = await bench.interleaved(
                fold=partial(_fold, pool),
                bare=partial(_bare, pool),
                read=partial(_read, pool),
                envelopes=partial(_envelopes, pool),
            )
    fold, bare, limit = rounds["fold"], rounds["bare"], "bare read and decode"
    name = f"{JOBS * EVENTS_PER_JOB} events folded into {JOBS} jobs"
    bench.record(name, fold, "1/s", limit=bare, limit_is=limit, target=ratio_at_least(0.7))
    bench.record(f"{name}, again", fold, "1/s", limit=rounds["read"], limit_is="our reader without the fold")
    bench.record("the same events with envelopes", rounds["envelopes"], "1/s", limit=bare, limit_is=limit)
    await _rebuild_all(bench)


async def _rebuild_all(bench: Bench) -> None:
    """All five services' read models, each refolded in one transaction and found equal to what it was."""
    events = a_month(1, Shape(jobs=MONTH_JOBS))
    async with fresh_log(bench) as database:
        written = await bulk_log.write(database.superuser_dsn, events)
        rates: list[float] = []
        done: list[Rebuilt] = []
        for _ in range(bench.rounds + 1):
            started = time.perf_counter()
            done = [await _rebuild(database, projection, written.last_position) for projection in PROJECTIONS]
            rates.append(written.last_position / (time.perf_counter() - started))
        assert all(one.equal for one in done), done
        rows = sum(one.rows for one in done)
    name = f"all read models rebuilt from {len(events)} events of {MONTH_JOBS} jobs ({rows} rows)"
    bench.record(name, rates[1:], "events/s", note="the first filled empty tables")


async def _rebuild(database: LogDatabase, projection: Projection, head: int) -> Rebuilt:
    durable = projection.durable
    async with asyncpg.create_pool(database.dsn(durable.service), min_size=2, max_size=4) as pool:
        await pool.execute(INBOX.ensure_checkpoint, durable.name)
        await pool.execute(INBOX.raise_checkpoint, durable.name, head)
        return (await rebuild(pool, PostgresEventStore(pool), [projection]))[0]


async def _fold(pool: asyncpg.Pool) -> float:
    jobs: dict[str, Job] = {}
    absent = Absent()

    def take(stream: str, event: Event | None) -> None:
        if event is not None:
            jobs[stream] = evolve(jobs.get(stream, absent), event)

    with rare_collections():
        started = time.perf_counter()
        count = await replay(pool, take)
        seconds = time.perf_counter() - started
    assert len(jobs) == JOBS
    assert all(isinstance(job, Ended) for job in jobs.values())
    return count / seconds


async def _bare(pool: asyncpg.Pool) -> float:
    count = position = 0
    with rare_collections():
        started = time.perf_counter()
        while rows := await pool.fetch(_BARE, position, _BARE_PAGE):
            for _, _, type_, data in rows:
                _DECODERS[type_].decode(data)
            count, position = count + len(rows), rows[-1]["global_position"]
        seconds = time.perf_counter() - started
    assert count == JOBS * EVENTS_PER_JOB
    return count / seconds


async def _read(pool: asyncpg.Pool) -> float:
    def take(_stream: str, _event: Event | None) -> None:
        return

    with rare_collections():
        started = time.perf_counter()
        return await replay(pool, take) / (time.perf_counter() - started)


async def _envelopes(pool: asyncpg.Pool) -> float:
    """As consumers and rebuilds get them; a fifth of the log is enough."""
    store, position, end = PostgresEventStore(pool), 0, JOBS * EVENTS_PER_JOB // 5
    with rare_collections():
        started = time.perf_counter()
        while page := await store.read(after=position, up_to=end, limit=_BARE_PAGE):
            position = page[-1].global_position
        return position / (time.perf_counter() - started)
