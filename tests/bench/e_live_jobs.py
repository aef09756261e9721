"""10 000 live jobs on one control plane: memory, processors at rest, submit, 2 000 cancels.

Each has its data and its money and waits for a slot. Memory is the proportional set size of every process: the five
services, the relay, the supervisor's children Postgres and NATS included.
"""

import asyncio
import time

import asyncpg

from tests.bench.bench import Bench, at_least, at_most
from tests.bench.http_load import Load, generate, request
from tests.bench.site import Site, largest, more, site, waiting_jobs

LIVE = 10_000
CANCELS = 2000
REST_S = 5.0
SERVICES = ("gateway", "scheduler", "storage", "billing", "provider_bridge", "relay")
_SOME = "select job_id::text from gateway.jobs_view order by job_id limit $1"
_LEFT = "select count(*) from gateway.jobs_view where status not in ('cancelled')"


async def run(bench: Bench) -> None:
    """One site, one round of each: it is what 10 000 jobs do to it that is measured."""
    async with site(bench, waiting_jobs(LIVE)) as ours:
        memory = ours.memory_mb()
        total = sum(memory.values())
        bench.record(f"memory with {LIVE} live jobs", total, "MiB", target=at_most(2048), note=largest(memory))
        alone = sum(memory[name] for name in SERVICES)
        bench.record("of that the services and the relay", alone, "MiB", limit=1126, limit_is="the peer, idle")
        await _rest(bench, ours)
        await _submits(bench, ours)
        await _cancels(bench, ours)


async def _rest(bench: Bench, ours: Site) -> None:
    rounds: list[float] = []
    for _ in range(bench.rounds):
        before = ours.cpu_s()
        await asyncio.sleep(REST_S / bench.rounds)
        rounds.append(sum(more(ours.cpu_s(), before).values()) / REST_S * bench.rounds * 100)
    bench.record("processors at rest", rounds, "% of one")


async def _submits(bench: Bench, ours: Site) -> None:
    """At a pace that people and CI keep: 40 a second."""
    load = ours.submits(connections=8, seconds=2, pause_s=0.2)
    got = [await generate(load) for _ in range(bench.rounds)]
    rate = sum(one.per_s for one in got) / len(got)
    bench.record("submit p95", [one.p95_ms for one in got], "ms", target=at_most(100), note=f"at {rate:.0f} a second")
    await ours.quiet(120)


async def _cancels(bench: Bench, ours: Site) -> None:
    connection = await asyncpg.connect(ours.database.superuser_dsn)
    ids = [row[0] for row in await connection.fetch(_SOME, CANCELS)]
    left = await connection.fetchval(_LEFT)
    requests = [request(ours.port, "POST", f"/api/cloud/jobs/{job_id}/cancel") for job_id in ids]
    began = time.monotonic()
    done = await generate(Load(port=ours.port, requests=requests, connections=16, seconds=120, count=CANCELS))
    bench.record(
        f"{CANCELS} cancels, answered", done.per_s, "1/s", target=at_least(100), note=f"p95 {done.p95_ms:.1f} ms"
    )
    async with asyncio.timeout(120):
        while await connection.fetchval(_LEFT) > left - CANCELS:  # noqa: ASYNC110 - the condition lies in Postgres
            await asyncio.sleep(0.05)
    bench.record(f"{CANCELS} cancels, all seen as cancelled", time.monotonic() - began, "s")
    await connection.close()
    took_s = time.monotonic() - began + await ours.quiet(180)
    bench.record(f"{CANCELS} cancels, everything after them done", took_s, "s")
