"""A service as a process: connect, build, serve until SIGTERM, drain in order, end loudly when a part fails.

Stopping: commands are drained and the loops end, then consumers finish the event in hand, then connections close.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TypeVar

import asyncpg
import msgspec
import stamina
import structlog
import uvloop

from shared.administration import Administration
from shared.clock import Clock, utc_now
from shared.contracts.job import Command
from shared.eventstore.outages import OUTAGES
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.transactional import TransactionalStore
from shared.messaging.commands import CommandHandler, CommandSender, CommandServer
from shared.messaging.connection import Bus, BusSettings
from shared.messaging.consumer import Consumer, Pace, Subscription
from shared.messaging.pull import MakePull, StandingPull
from shared.messaging.right_of_way import RightOfWay
from shared.observability import logging, tracing
from shared.projection import Projection
from shared.settings import Secret, SettingsError, load

STATEMENT_S = 30.0
CONNECT_S = 10.0
START_S = 60.0
DRAIN_S = 15.0
COMMANDS_DRAIN_S = 10.0
_POOL_CONNECTIONS = 16
_EXIT_FAILED = 1
_EXIT_SETTINGS = 2

log = structlog.stdlib.get_logger()

Loop = Callable[[asyncio.Event], Awaitable[None]]


class CoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs; a service's own Settings extends it."""

    database_url: Secret
    nats_url: str
    nats_user: str
    nats_password: Secret
    log_format: str = "json"
    log_level: str = "INFO"


S = TypeVar("S", bound=CoreSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a service is built on."""

    service: str
    pool: asyncpg.Pool
    store: TransactionalStore
    bus: Bus
    sender: CommandSender
    clock: Clock
    stop: asyncio.Event
    """Set when the service is asked to stop; loops end on it."""
    consumers: dict[str, Consumer] = field(default_factory=dict[str, Consumer])
    """By durable name; filled after build."""


class Consuming(msgspec.Struct, frozen=True, kw_only=True):
    """What a service's consumers are made with."""

    connect: Callable[[str], Awaitable[asyncpg.Connection]]
    """`connect(durable)`: a connection of its own, which ends the durable's turn when it breaks."""
    pull: MakePull
    pace: Pace | None = None
    right_of_way: RightOfWay = msgspec.field(default_factory=RightOfWay)


class ServiceParts(msgspec.Struct, kw_only=True):
    """What a service consists of. A loop gets the stop event and returns soon after it is set."""

    commands: Mapping[type[Command], CommandHandler] = {}
    subscriptions: Sequence[Subscription] = ()
    projections: Sequence[Projection] = ()
    loops: Sequence[Loop] = ()


Build = Callable[[Runtime, S], Awaitable[ServiceParts]]


class LoopEndedError(Exception):
    """A loop returned although nobody asked the service to stop."""


class DrainOverranError(Exception):
    """What did not end in time after the request to stop; it was cancelled."""


class BusClosedError(Exception):
    """NATS closed the connection for good, for example because the login is no longer valid."""


def run_service(
    service: str,
    settings_type: type[S],
    build: Build[S],
    environ: Mapping[str, str] | None = None,
) -> int:
    """Runs a service until SIGTERM or SIGINT; the exit code: 0 drained, 1 a part failed, 2 the settings are wrong."""
    environment = os.environ if environ is None else environ
    try:
        settings = load(settings_type, environment)
    except SettingsError as error:
        sys.stderr.write(f"{service}: {error}\n")
        return _EXIT_SETTINGS
    logging.configure(service, log_format=settings.log_format, level=settings.log_level)
    flush = tracing.configure(service, environment)
    try:
        uvloop.run(_serve(service, settings, build))
    except SettingsError as error:  # of what only the parts themselves can judge
        sys.stderr.write(f"{service}: {error}\n")
        return _EXIT_SETTINGS
    except Exception:
        log.exception("service.process.failed")
        return _EXIT_FAILED
    finally:
        flush()
    return 0


async def _serve(service: str, settings: S, build: Build[S]) -> None:
    asked, started = asyncio.Event(), asyncio.Event()
    main = asyncio.current_task()

    def ask() -> None:
        asked.set()
        if main is not None and not started.is_set():
            main.cancel()  # it waits for a server that may be away for long

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        async with running_service(service, settings, build, stop=asked):
            started.set()
            await asked.wait()
            log.info("service.process.stopping")
    except asyncio.CancelledError:
        if started.is_set() or not asked.is_set():
            raise
        log.info("service.start.abandoned")
    log.info("service.process.stopped")


@asynccontextmanager
async def running_service(
    service: str,
    settings: S,
    build: Build[S],
    *,
    stop: asyncio.Event | None = None,
    clock: Clock = utc_now,
) -> AsyncGenerator[Runtime]:
    """A service that serves inside the block and is drained at its end; a part that fails ends the block."""
    async with AsyncExitStack() as stack:
        runtime = await _connect(stack, service, settings, stop or asyncio.Event(), clock)
        parts = await build(runtime, settings)
        consuming = Consuming(
            connect=partial(_connect_consumer, settings), pull=partial(StandingPull, runtime.bus.client)
        )
        await consuming.right_of_way.listen(runtime.bus.client)
        await stack.enter_async_context(serving(runtime, parts, consuming))
        yield runtime


@asynccontextmanager
async def serving(runtime: Runtime, parts: ServiceParts, consuming: Consuming) -> AsyncGenerator[None]:
    """The parts at work inside the block, drained at its end; a part that fails ends the block."""
    _add_consumers(runtime, parts, consuming)
    consumers_stop, ready = asyncio.Event(), asyncio.Event()
    # Two groups, so that consumers outlive the commands and requests that wait for them.
    async with asyncio.TaskGroup() as consumers:
        _start_consuming(consumers, runtime, consumers_stop)
        try:
            async with asyncio.TaskGroup() as others:
                _start_serving(others, runtime, parts, ready)
                await ready.wait()
                log.info("service.process.started")
                try:
                    yield
                finally:
                    runtime.stop.set()
        finally:
            consumers_stop.set()


def _start_consuming(tasks: asyncio.TaskGroup, runtime: Runtime, stop: asyncio.Event) -> None:
    working = [
        tasks.create_task(consumer.run(stop), name=f"consumer {name}") for name, consumer in runtime.consumers.items()
    ]
    tasks.create_task(_end_in_time(stop, working, ()))


def _start_serving(tasks: asyncio.TaskGroup, runtime: Runtime, parts: ServiceParts, ready: asyncio.Event) -> None:
    administration = Administration(
        runtime.service,
        _version(),
        pool=runtime.pool,
        store=runtime.store,
        subscriptions=parts.subscriptions,
        projections=parts.projections,
        consumers=runtime.consumers,
    )
    server = CommandServer(runtime.bus, runtime.service, {**administration.handlers(), **parts.commands})
    working = [tasks.create_task(server.run(runtime.stop, drain_s=COMMANDS_DRAIN_S, ready=ready), name="commands")]
    working += [tasks.create_task(_run_loop(loop, runtime.stop), name=f"loop {loop!r}") for loop in parts.loops]
    watching = tasks.create_task(_watch_bus(runtime.bus), name="bus")
    tasks.create_task(_end_in_time(runtime.stop, working, (watching,)))


async def _run_loop(loop: Loop, stop: asyncio.Event) -> None:
    await loop(stop)
    if not stop.is_set():
        raise LoopEndedError(repr(loop))


async def _watch_bus(bus: Bus) -> None:
    await bus.closed.wait()
    raise BusClosedError


async def _end_in_time(
    stop: asyncio.Event, working: Sequence[asyncio.Task[None]], watching: Sequence[asyncio.Task[None]]
) -> None:
    """Raises, and so cancels what is left, when the work does not end within DRAIN_S of the request to stop."""
    await stop.wait()
    late = (await asyncio.wait(working, timeout=DRAIN_S))[1] if working else set[asyncio.Task[None]]()
    for task in watching:
        task.cancel()
    if late:
        raise DrainOverranError(", ".join(task.get_name() for task in late))


async def _connect(
    stack: AsyncExitStack, service: str, settings: CoreSettings, stop: asyncio.Event, clock: Clock
) -> Runtime:
    pool = await _open_pool(service, settings)
    stack.push_async_callback(pool.close)
    store = PostgresEventStore(pool)
    stack.push_async_callback(store.close)
    bus_settings = BusSettings(url=settings.nats_url, user=settings.nats_user, password=settings.nats_password)
    bus = await Bus.connect(bus_settings, service=service, timeout_s=START_S)
    stack.push_async_callback(bus.close)
    return Runtime(service=service, pool=pool, store=store, bus=bus, sender=CommandSender(bus), clock=clock, stop=stop)


async def _open_pool(service: str, settings: CoreSettings) -> asyncpg.Pool:
    async for attempt in stamina.retry_context(on=OUTAGES, attempts=None, timeout=START_S, wait_max=2.0):
        with attempt:
            return await asyncpg.create_pool(
                settings.database_url.reveal(),
                min_size=1,
                max_size=_POOL_CONNECTIONS,
                command_timeout=STATEMENT_S,
                timeout=CONNECT_S,
                server_settings={"application_name": service},
                reset=_leave_as_it_is,
            )
    raise AssertionError("stamina raises the last error")


async def _leave_as_it_is(_connection: object) -> None:
    """A connection goes back to the pool without a query of its own, which would double each use's round trips.

    Nobody may leave anything in a pooled session: no SET, no session lock. An open transaction is rolled back anyway.
    """


async def _connect_consumer(settings: CoreSettings, name: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        settings.database_url.reveal(),
        command_timeout=STATEMENT_S,
        timeout=CONNECT_S,
        server_settings={"application_name": name},
    )


def _add_consumers(runtime: Runtime, parts: ServiceParts, consuming: Consuming) -> None:
    for subscription in parts.subscriptions:
        name = subscription.durable.name
        runtime.consumers[name] = Consumer(
            subscription,
            store=runtime.store,
            pull=consuming.pull,
            pool=runtime.pool,
            connect=partial(consuming.connect, name),
            pace=consuming.pace,
            right_of_way=consuming.right_of_way,
        )


def _version() -> str:
    try:
        return package_version("tunewright")
    except PackageNotFoundError:  # run from the source tree
        return "0.1.0"
