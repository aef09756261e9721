"""A service as run_service and running_service make it: its admin commands, its rebuild, its drain, its loud end."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.account import AccountOpened
from shared.contracts.admin import ListParked, Ping, RebuildProjections, ReplayParked
from shared.contracts.envelope import CommandEnvelope, CommandReply, RecordedEvent
from shared.decider import metadata
from shared.eventstore.api import Append
from shared.messaging.commands import CommandSender
from shared.messaging.consumer import Subscription
from shared.problems import Rejected, Unavailable
from shared.projection import Projection
from shared.service import CoreSettings, LoopEndedError, Runtime, ServiceParts, run_service, running_service
from shared.settings import load
from tests.integration.messaging.harness import LEDGER, SERVICE, Bench, project
from tests.support.bus import ServiceSettings, connected_bus
from tests.support.log import an_account_event, an_append

PROJECTION = Projection(name="accounts", tables=("seen", "tally"), durable=LEDGER, project=project)
ROOT = Path(__file__).resolve().parents[3]


async def build(_runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
    return ServiceParts(
        subscriptions=[Subscription(durable=LEDGER, project=project)],
        projections=[PROJECTION],
    )


def core(environment: Mapping[str, str]) -> CoreSettings:
    return load(CoreSettings, environment)


async def ask(server: EmbeddedNats, command: Ping | RebuildProjections | ListParked | ReplayParked) -> CommandReply:
    async with connected_bus(server, "gateway") as bus:
        return await CommandSender(bus).send(SERVICE, command, correlation_id=uuid4(), timeout_s=60)


async def test_ping_names_the_service_and_its_lag(bench: Bench, service_settings: ServiceSettings) -> None:
    async with running_service(SERVICE, core(service_settings(SERVICE)), build) as runtime:
        positions = await bench.open_accounts(2)
        assert await runtime.consumers[LEDGER.name].wait_for(positions[-1], 60)
        data = (await ask(bench.server, Ping())).data
    assert data["service"] == SERVICE
    assert data["lag"] == {LEDGER.name: 0}


async def test_lag_counts_events_that_are_not_handled_yet(bench: Bench, service_settings: ServiceSettings) -> None:
    async def build_held(_runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
        async def held(_event: RecordedEvent) -> None:
            raise Unavailable("storage is away")

        return ServiceParts(subscriptions=[Subscription(durable=LEDGER, react=held)])

    await bench.open_accounts(3)
    await bench.record_facts(2)
    async with running_service(SERVICE, core(service_settings(SERVICE)), build_held):
        assert (await ask(bench.server, Ping())).data["lag"] == {LEDGER.name: 3}


async def test_rebuild_gives_byte_equal_rows(bench: Bench, service_settings: ServiceSettings) -> None:
    async with running_service(SERVICE, core(service_settings(SERVICE)), build) as runtime:
        positions = await bench.open_accounts(30)
        assert await runtime.consumers[LEDGER.name].wait_for(positions[-1], 60)
        before = await bench.tally()
        report = (await ask(bench.server, RebuildProjections())).data["projections"]
        assert await bench.tally() == before
        more = await bench.open_accounts(5)
        assert await runtime.consumers[LEDGER.name].wait_for(more[-1], 60)
    assert [(one["name"], one["rows"], one["equal"]) for one in report] == [("accounts", 31, True)]
    assert await bench.handled() == dict.fromkeys(positions + more, 1)


async def test_rebuild_under_load_loses_and_doubles_nothing(bench: Bench, service_settings: ServiceSettings) -> None:
    async with running_service(SERVICE, core(service_settings(SERVICE)), build) as runtime:
        reports: list[dict[str, object]] = []
        positions: list[int] = []
        for _ in range(5):
            async with asyncio.TaskGroup() as tasks:
                opened = tasks.create_task(bench.open_accounts(40))
                rebuilt = tasks.create_task(ask(bench.server, RebuildProjections()))
            positions += opened.result()
            reports += rebuilt.result().data["projections"]
        assert await runtime.consumers[LEDGER.name].wait_for(positions[-1], 60)
    assert all(report["equal"] for report in reports)
    assert await bench.handled() == dict.fromkeys(positions, 1)


async def test_rebuild_repairs_rows_that_were_tampered_with(bench: Bench, service_settings: ServiceSettings) -> None:
    async with running_service(SERVICE, core(service_settings(SERVICE)), build) as runtime:
        positions = await bench.open_accounts(3)
        assert await runtime.consumers[LEDGER.name].wait_for(positions[-1], 60)
        await bench.pool.execute("UPDATE seen SET type = 'x' WHERE position = $1", positions[1])
        first = (await ask(bench.server, RebuildProjections())).data["projections"][0]
        second = (await ask(bench.server, RebuildProjections())).data["projections"][0]
    assert (first["equal"], second["equal"]) == (False, True)
    assert first["after_sha256"] == second["before_sha256"]


async def test_parked_event_is_listed_and_replayed_once(bench: Bench, service_settings: ServiceSettings) -> None:
    broken = True

    async def build_fragile(_runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
        async def fragile(connection: asyncpg.Connection, event: RecordedEvent) -> None:
            if broken:
                raise ArithmeticError("no such currency")
            await project(connection, event)

        return ServiceParts(subscriptions=[Subscription(durable=LEDGER, project=fragile)])

    async with running_service(SERVICE, core(service_settings(SERVICE)), build_fragile) as runtime:
        [position] = await bench.open_accounts(1)
        assert await runtime.consumers[LEDGER.name].wait_for(position, 60)
        [parked] = (await ask(bench.server, ListParked())).data["parked"]
        assert (parked["durable"], parked["position"], parked["reason"]) == (
            LEDGER.name,
            position,
            "ArithmeticError: no such currency",
        )
        replay = ReplayParked(durable=LEDGER.name, position=position)
        failed = (await ask(bench.server, replay)).data
        assert failed == {"replayed": False, "reason": "ArithmeticError: no such currency"}
        broken = False
        assert (await ask(bench.server, replay)).data == {"replayed": True, "reason": None}
        assert (await ask(bench.server, ListParked())).data == {"parked": []}
        with pytest.raises(Rejected, match="not_found"):
            await ask(bench.server, replay)
    assert await bench.handled() == {position: 1}


async def test_loop_that_ends_by_itself_ends_the_service(service_settings: ServiceSettings) -> None:
    async def build_short(_runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
        async def short(_stop: asyncio.Event) -> None:
            return

        return ServiceParts(loops=[short])

    with pytest.raises(ExceptionGroup) as ended:
        async with running_service(SERVICE, core(service_settings(SERVICE)), build_short):
            await asyncio.wait_for(asyncio.Event().wait(), 60)
    assert ended.value.subgroup(LoopEndedError)


async def test_bug_in_a_loop_ends_the_service(service_settings: ServiceSettings) -> None:
    async def build_broken(_runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
        async def broken(_stop: asyncio.Event) -> None:
            raise ZeroDivisionError

        return ServiceParts(loops=[broken])

    with pytest.raises(ExceptionGroup) as ended:
        async with running_service(SERVICE, core(service_settings(SERVICE)), build_broken):
            await asyncio.wait_for(asyncio.Event().wait(), 60)
    assert ended.value.subgroup(ZeroDivisionError)


async def test_traceparent_survives_command_event_consumer_and_command(
    bench: Bench, service_settings: ServiceSettings
) -> None:
    trace_id = 0x0AF7651916CD43DD8448EB211C80319C
    heard: list[CommandEnvelope] = []

    async def build_hops(runtime: Runtime, _settings: CoreSettings) -> ServiceParts:
        async def append(_command: ListParked, envelope: CommandEnvelope) -> CommandReply:
            event: AccountOpened = an_account_event()
            append = Append(
                stream=f"account-{uuid4()}",
                expected_version=0,
                events=[event],
                meta=metadata(envelope),
                correlation_id=envelope.correlation_id,
            )
            return CommandReply(position=(await runtime.store.append(append)).last_position)

        async def note(_command: ReplayParked, envelope: CommandEnvelope) -> CommandReply:
            heard.append(envelope)
            return CommandReply()

        async def react(event: RecordedEvent) -> None:
            async with connected_bus(bench.server, "gateway") as bus:
                command = ReplayParked(durable="", position=0)
                await CommandSender(bus).send(SERVICE, command, correlation_id=event.correlation_id)

        return ServiceParts(
            commands={ListParked: append, ReplayParked: note},
            subscriptions=[Subscription(durable=LEDGER, react=react)],
        )

    async with running_service(SERVICE, core(service_settings(SERVICE)), build_hops) as runtime:
        remote = SpanContext(trace_id, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1))
        with use_span(NonRecordingSpan(remote)):
            reply = await ask(bench.server, ListParked())
        assert await runtime.consumers[LEDGER.name].wait_for(reply.position, 60)
    recorded = await bench.event_at(reply.position)
    for traceparent in (recorded.meta.traceparent, heard[0].traceparent):
        assert traceparent is not None
        assert traceparent.split("-")[1] == f"{trace_id:032x}"


PROGRAM = """
import asyncio, sys
from shared.contracts.admin import ListParked
from shared.contracts.envelope import CommandReply
from shared.service import CoreSettings, ServiceParts, run_service

async def build(runtime, settings):
    async def slow(command, envelope):
        print("in flight", flush=True)
        await runtime.stop.wait()  # answered only after the request to stop has come
        await runtime.pool.fetchval("SELECT pg_sleep(0.2)")
        return CommandReply(position=77)

    async def broken(stop):
        if sys.argv[1] == "crash":
            raise ZeroDivisionError
        await stop.wait()

    return ServiceParts(commands={ListParked: slow}, loops=[broken])

sys.exit(run_service("billing", CoreSettings, build))
"""


async def start(environment: Mapping[str, str], mode: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        mode,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment, "LOG_LEVEL": "INFO"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def read_until(process: asyncio.subprocess.Process, text: bytes) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while text not in (line := await process.stdout.readline()):
            assert line, "the process ended before it said so"


async def test_sigterm_finishes_the_command_in_flight_and_exits_cleanly(
    bench: Bench, service_settings: ServiceSettings
) -> None:
    process = await start(service_settings(SERVICE), "serve")
    await read_until(process, b"service.process.started")
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(ask(bench.server, ListParked()))
        await read_until(process, b"in flight")
        process.send_signal(signal.SIGTERM)
    assert answer.result().position == 77
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, output + errors
    assert b"service.process.stopped" in output


async def test_crash_in_a_loop_ends_the_process_with_a_code_and_a_traceback(service_settings: ServiceSettings) -> None:
    process = await start(service_settings(SERVICE), "crash")
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 1
    assert b"ZeroDivisionError" in output
    assert b"service.process.failed" in output


async def test_sigterm_ends_a_service_that_still_waits_for_a_server(service_settings: ServiceSettings) -> None:
    nobody = {**service_settings(SERVICE), "NATS_URL": "nats://127.0.0.1:9"}
    process = await start(nobody, "serve")
    await read_until(process, b"bus.error.reported")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, output + errors
    assert b"service.start.abandoned" in output


async def test_wrong_settings_end_the_process_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_service(SERVICE, CoreSettings, build, {"NATS_URL": "nats://x"}) == 2
    told = capsys.readouterr().err
    assert "DATABASE_URL is not set" in told
    assert "NATS_PASSWORD is not set" in told


async def test_log_of_a_service_names_no_secret(bench: Bench, service_settings: ServiceSettings) -> None:
    environment = service_settings(SERVICE)
    process = await start(environment, "serve")
    await read_until(process, b"service.process.started")
    bench.server.stop()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    bench.server.start()
    for name in ("NATS_PASSWORD", "DATABASE_URL"):
        assert environment[name].encode() not in output + errors


async def test_foreign_append_is_refused_by_the_log(bench: Bench, service_settings: ServiceSettings) -> None:
    async with running_service(SERVICE, core(service_settings(SERVICE)), build) as runtime:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await runtime.store.append(an_append(f"job-{uuid4()}"))
    assert await bench.handled() == {}
