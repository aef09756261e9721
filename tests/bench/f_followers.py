"""1 000 followers of live events and logs: memory, and submit with and without them.

Half follow `/api/events`, half the logs of ten jobs. Submits come at 20 a second; each leads to some six events, which
every follower of `/api/events` is sent.
"""

import asyncio
import statistics
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.bench.bench import Bench, at_most
from tests.bench.http_load import generate
from tests.bench.site import Site, largest, more, site

FOLLOWERS = 1000
JOBS = 10
SUBMIT_S = 2.0


async def run(bench: Bench) -> None:
    """Submits alone first, then beside the followers."""
    async with site(bench) as ours:
        ids = await ours.seed(JOBS)
        await ours.quiet(60)
        alone = await _submit_p95(bench, ours)
        await ours.quiet(60)
        before = ours.memory_mb()
        async with _following(ours, ids) as followers:
            await ours.quiet(60)
            grown = more(ours.memory_mb(), before)
            total = sum(grown.values())
            note = largest(grown, count=3)
            bench.record(f"memory for {FOLLOWERS} followers", total, "MiB", target=at_most(300), note=note)
            used = ours.cpu_s()
            beside = await _submit_p95(bench, ours)
            cpu = more(ours.cpu_s(), used)
            heard = await _count(followers)
            note = f"{heard} followers heard of the submits; gateway {cpu['gateway']:.1f} processor seconds meanwhile"
            bench.record(
                "submit p95 beside them", beside, "ms", limit=alone, limit_is="without", target=at_most(100), note=note
            )
            bench.record(
                "followers that heard nothing or were cut off", float(FOLLOWERS // 2 - heard), "", target=at_most(0)
            )


async def _submit_p95(bench: Bench, ours: Site) -> list[float]:
    load = ours.submits(connections=4, seconds=SUBMIT_S, pause_s=0.2)
    got = [await generate(load) for _ in range(bench.rounds)]
    assert statistics.median(one.count for one in got) > 1
    return [one.p95_ms for one in got]


@asynccontextmanager
async def _following(ours: Site, ids: list[str]) -> AsyncGenerator[Process]:
    """The followers, all connected, in a process of their own."""
    paths = ["/api/events"] * (FOLLOWERS // 2)
    paths += [f"/api/cloud/jobs/{ids[number % JOBS]}/logs/stream" for number in range(FOLLOWERS - len(paths))]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.http_followers", str(ours.port)), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("\n".join(paths).encode() + b"\n\n")
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"connected\n"
        yield process
    finally:
        process.kill()
        await process.wait()


async def _count(followers: Process) -> int:
    assert followers.stdin is not None
    assert followers.stdout is not None
    followers.stdin.write(b"count\n")
    async with asyncio.timeout(60):
        return int(await followers.stdout.readline())
