"""From a commit to those who wait for it: a consumer through relay and JetStream, a browser through the gateway.

The clock starts when the appender has its answer. Relay, consumer and gateway are processes of their own. "In hand" is
the moment when the consumer's handler gets the event, "handled" when rows, inbox and checkpoint are committed.

The limit is the same road without us, in `bare_road.py`: the same hops, with nothing decoded, kept apart or remembered.
"""

import asyncio
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import uuid4

import httpx
import msgspec

from deploy.embedded.nats import EmbeddedNats
from deploy.embedded.process import free_port
from shared.contracts.subjects import GATEWAY_JOBS_VIEW, SCHEDULER_ASK_BILLING
from shared.eventstore.postgres import PostgresEventStore
from tests.bench.bare_road import Commit, bare_road, pace
from tests.bench.bench import Bench, Target, at_most, percentile
from tests.bench.processes import ask, environment, running
from tests.bench.servers import fresh_bus, fresh_log
from tests.support.log import LogDatabase, a_fact, an_append

IDLE_PER_S = 200
LOADED_PER_S = 1000
_TARGET = at_most(15)
_FACT = a_fact("x" * 250)


async def run(bench: Bench) -> None:
    """Percentiles in milliseconds: each round has its own, and the medians of the rounds are shown."""
    async with fresh_log(bench) as database, AsyncExitStack() as stack:
        bus = stack.enter_context(fresh_bus(bench))
        store = await stack.enter_async_context(PostgresEventStore.open(database.dsn("scheduler")))
        log = bench.home / "b.log"
        await stack.enter_async_context(running("shared.eventstore.relay", environment(database, bus, "relay"), log))
        one = await stack.enter_async_context(_follower(bench, database, bus, "scheduler", SCHEDULER_ASK_BILLING.name))
        many = await stack.enter_async_context(_follower(bench, database, bus, "gateway", GATEWAY_JOBS_VIEW.name))
        bare = await stack.enter_async_context(bare_road(database, bus))
        for rate, name in ((IDLE_PER_S, f"{IDLE_PER_S} events/s"), (LOADED_PER_S, f"{LOADED_PER_S} events/s")):
            target = _TARGET if rate == IDLE_PER_S else None
            await _measure(bench, store, (one, many), bare, rate=rate, name=name, target=target)
        browser = await stack.enter_async_context(_browser(bench, database, bus))
        rounds = [await browser(partial(_commit, store), IDLE_PER_S) for _ in range(bench.rounds)]
        _record(bench, f"commit to browser (SSE), {IDLE_PER_S} events/s", rounds)


async def _measure(
    bench: Bench,
    store: PostgresEventStore,
    followers: Sequence[Process],
    bare: Callable[[int], Awaitable[list[float]]],
    *,
    rate: int,
    name: str,
    target: Target | None,
) -> None:
    """Two consumers at once, as in life: one of a single category, one of five."""
    in_hand: list[list[float]] = []
    handled: list[list[float]] = []
    five: list[list[float]] = []
    limits: list[list[float]] = []
    for _ in range(bench.rounds):
        committed = await pace(partial(_commit, store), rate)
        single, several = [await _times(process, committed) for process in followers]
        in_hand.append([seen for seen, _ in single])
        handled.append([at for _, at in single])
        five.append([seen for seen, _ in several])
        limits.append(await bare(rate))
    _record(bench, f"commit to consumer, in hand, {name}", in_hand, limits, target)
    _record(bench, f"commit to consumer of five categories, in hand, {name}", five, limits, target)
    _record(bench, f"commit to consumer, handled, {name}", handled, limits)


def _record(
    bench: Bench,
    name: str,
    rounds: Sequence[Sequence[float]],
    limits: Sequence[Sequence[float]] | None = None,
    target: Target | None = None,
) -> None:
    for share, word in ((0.5, "p50"), (0.99, "p99")):
        bench.record(
            f"{name}, {word}",
            [percentile(one, share) for one in rounds],
            "ms",
            limit=None if limits is None else [percentile(one, share) for one in limits],
            limit_is="bare road",
            target=target if word == "p99" else None,
        )


async def _commit(store: PostgresEventStore) -> int:
    return (await store.append(an_append(f"job-{uuid4()}", _FACT))).last_position


async def _times(follower: Process, committed: dict[int, int]) -> list[tuple[float, float]]:
    """Milliseconds from commit to in hand and to handled, of each event."""
    notes = msgspec.json.decode(await ask(follower, f"times {max(committed)}"), type=list[tuple[int, int, int]])
    return [
        ((seen - committed[position]) / 1e6, (handled - committed[position]) / 1e6)
        for position, seen, handled in notes
        if position in committed
    ]


@asynccontextmanager
async def _follower(
    bench: Bench, database: LogDatabase, bus: EmbeddedNats, service: str, durable: str
) -> AsyncGenerator[Process]:
    env = environment(database, bus, service)
    async with running("tests.bench.follower", env, bench.home / "b.log", durable, talks=True) as process:
        assert await ask(process, "ready") == b"ready\n"
        yield process


@asynccontextmanager
async def _browser(
    bench: Bench, database: LogDatabase, bus: EmbeddedNats
) -> AsyncGenerator[Callable[[Commit, int], Awaitable[list[float]]]]:
    """A client of `/api/events`, and a gateway that has nothing else to do."""
    port = free_port()
    env = environment(
        database,
        bus,
        "gateway",
        gateway_port=port,
        gateway_storage_token="none",
        gateway_config_dir=bench.home / "configs",
    )
    arrived: dict[int, int] = {}
    connected = asyncio.Event()

    async def listen() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            while True:
                try:
                    async with http.stream("GET", "/api/events") as answer:
                        async for line in answer.aiter_lines():
                            connected.set()
                            if line.startswith("id: "):
                                arrived[int(line[4:])] = time.monotonic_ns()
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    async def measure(commit: Commit, rate: int) -> list[float]:
        committed = await pace(commit, rate)
        async with asyncio.timeout(30):
            while max(arrived, default=0) < max(committed):  # noqa: ASYNC110 - a few at the end are still on their way
                await asyncio.sleep(0.01)
        return [(arrived[position] - at) / 1e6 for position, at in committed.items() if position in arrived]

    async with running("services.gateway", env, bench.home / "b.log"):
        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(60):
                await connected.wait()
            yield measure
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
