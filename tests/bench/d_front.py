"""Submit, list, get, queue and metrics over HTTP with 0, 10 000 and 100 000 jobs in the log.

All five services, the relay, NATS, Postgres and the load generator share the machine. The limit is a bare Litestar
route with one append in one process, without a command, a consumer or a check. Submits go on without a pause through
all rounds: what they leave to be done in the background is done meanwhile and afterwards, and is counted.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from deploy.embedded.process import free_port
from tests.bench.bench import Bench, at_least, at_most, ratio_at_least
from tests.bench.http_load import Load, generate, request
from tests.bench.processes import running
from tests.bench.servers import fresh_log
from tests.bench.site import Site, Used, ended_jobs, largest, more, site
from tests.support.log import LogDatabase

SIZES = (0, 10_000, 100_000)
CONNECTIONS = 16
SUBMIT_S = 0.8
READ_S = 0.6
LIVE = 50
FLAT = 1 / 1.5
READS = {"list": 1000.0, "get": 1000.0, "queue": None, "metrics": None}
"""Reading -> target, 1/s."""

_COUNTS = """
select
    (select count(*) from log.events where type = 'job.submitted.v1'),
    (select count(*) from gateway.jobs_view),
    (select count(*) from scheduler.jobs where phase = 'queued' and wait_reason is not null)
"""


async def run(bench: Bench) -> None:
    """Every size on a log of its own; then how flat each figure is."""
    flat: dict[str, dict[int, list[float]]] = {}
    for size in SIZES:
        began = time.monotonic()
        async with fresh_log(bench) as bare_log, site(bench, ended_jobs(size)) as ours:
            bench.say(f"{size} jobs in the log, ready after {time.monotonic() - began:.0f} s")
            ids = await ours.seed(LIVE)
            await ours.quiet(60)
            for name, rates in (await _reads(bench, ours, size, ids)).items():
                flat.setdefault(name, {})[size] = rates
            flat.setdefault("submit", {})[size] = await _submits(bench, ours, size, bare_log)
    for name, rates in flat.items():
        most = SIZES[-1]
        text = f"{name}, {most:_} jobs against none".replace("_", " ")
        bench.record(
            text, rates[most], "1/s", limit=rates[0], limit_is="ours with none", target=ratio_at_least(round(FLAT, 3))
        )


async def _reads(bench: Bench, ours: Site, size: int, ids: list[str]) -> dict[str, list[float]]:
    paths = {
        "list": ["/api/cloud/jobs?limit=50"],
        "get": [f"/api/cloud/jobs/{job_id}" for job_id in ids],
        "queue": ["/api/v1/queue"],
        "metrics": ["/api/cloud/metrics"],
    }
    rates: dict[str, list[float]] = {}
    for name, wanted in paths.items():
        how = {"connections": CONNECTIONS, "seconds": READ_S}
        got = [await generate(ours.gets(*wanted, **how)) for _ in range(bench.rounds)]
        target = READS[name]
        rates[name] = [one.per_s for one in got]
        note = f"p99 {statistics.median(one.p99_ms for one in got):.1f} ms"
        wanted_rate = None if target is None else at_least(target)
        bench.record(f"{name}, {size} jobs", rates[name], "1/s", target=wanted_rate, note=note)
    return rates


async def _submits(bench: Bench, ours: Site, size: int, bare_log: LogDatabase) -> list[float]:
    async with _bare(bench, bare_log) as port:
        text = request(port, "POST", "/api/cloud/jobs/submit", ours.submit_body)
        load = Load(port=port, requests=[text], connections=CONNECTIONS, seconds=SUBMIT_S)
        limit = [(await generate(load)).per_s for _ in range(bench.rounds)]
    before = ours.cpu_s()
    got = await generate(ours.submits(connections=CONNECTIONS, seconds=SUBMIT_S * bench.rounds, parts=bench.rounds))
    during = _each(more(ours.cpu_s(), before), got.count)
    accepted = got.count + LIVE
    drained_s = await ours.quiet(300)
    rates = [part.per_s for part in got.parts]
    bench.record(
        f"submit, {size} jobs",
        rates,
        "1/s",
        limit=limit,
        limit_is="bare Litestar POST, one append",
        target=at_least(500),
        note=f"processor ms each: {during}; generator {got.cpu_ms:.2f}",
    )
    bench.record(f"submit p99, {size} jobs", [part.p99_ms for part in got.parts], "ms", target=at_most(100))
    lost = await _lost(ours, size, accepted)
    total = _each(more(ours.cpu_s(), before), accepted - LIVE)
    note = f"{accepted} accepted, background done after {drained_s:.0f} s; with it {total}"
    bench.record(f"submits lost or doubled, {size} jobs", float(lost), "jobs", target=at_most(0), note=note)
    return rates


async def _lost(ours: Site, size: int, accepted: int) -> int:
    """By how much the log, the gateway's view and the queue differ from what was accepted, together."""
    connection = await asyncpg.connect(ours.database.superuser_dsn)
    counts = await connection.fetchrow(_COUNTS)
    await connection.close()
    assert counts is not None
    logged, viewed, explained = counts
    return abs(logged - size - accepted) + abs(viewed - size - accepted) + abs(explained - accepted)


def _each(used: Used, count: int) -> str:
    return f"{sum(used.values()) / count * 1e3:.1f} ({largest(used, count / 1e3, 2)})"


@asynccontextmanager
async def _bare(bench: Bench, log: LogDatabase) -> AsyncGenerator[int]:
    """The port of the limit's process, on a log that nobody consumes."""
    port = free_port()
    env = {"DATABASE_URL": log.superuser_dsn, "PORT": str(port)}
    async with running("tests.bench.bare_front", env, bench.home / "bare.log"):
        await _listening(port)
        yield port


async def _listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
