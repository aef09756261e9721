"""Commands over a real NATS: answered after the work, refused by name, and never silently lost."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import structlog
from nats.errors import NoRespondersError

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.admin import Ping, ReplayParked
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.job import Command
from shared.messaging.commands import MAX_COMMAND_BYTES, CommandHandler, CommandSender, CommandServer
from shared.messaging.connection import Bus
from shared.problems import Rejected, Unavailable
from tests.support.bus import connected_bus

OWNER = "billing"


class Blob(Command, frozen=True, kw_only=True, tag="blob"):
    data: str


async def accepted(_command: Command, _envelope: CommandEnvelope) -> CommandReply:
    return CommandReply(position=7)


@asynccontextmanager
async def serving(
    server: EmbeddedNats, handlers: Mapping[type[Command], CommandHandler], stop: asyncio.Event | None = None
) -> AsyncGenerator[Bus]:
    """One replica of the owner, drained at the end."""
    ended, ready = stop or asyncio.Event(), asyncio.Event()
    async with connected_bus(server, OWNER) as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(CommandServer(bus, OWNER, handlers).run(ended, drain_s=10, ready=ready))
        await ready.wait()
        try:
            yield bus
        finally:
            ended.set()


@asynccontextmanager
async def sending(server: EmbeddedNats) -> AsyncGenerator[CommandSender]:
    async with connected_bus(server, "gateway") as bus:
        yield CommandSender(bus)


async def test_reply_carries_position_and_envelope_reaches_the_handler(bus_server: EmbeddedNats) -> None:
    seen: list[tuple[ReplayParked, CommandEnvelope]] = []

    async def handler(command: ReplayParked, envelope: CommandEnvelope) -> CommandReply:
        seen.append((command, envelope))
        return CommandReply(position=42, data={"id": uuid4()})

    correlation, causation, command_id = uuid4(), uuid4(), uuid4()
    async with serving(bus_server, {ReplayParked: handler, Ping: accepted}), sending(bus_server) as sender:
        reply = await sender.send(
            OWNER,
            ReplayParked(durable="d", position=3),
            correlation_id=correlation,
            causation_id=causation,
            command_id=command_id,
            actor="user:alice",
            source_ip="10.0.0.1",
        )
    assert reply.position == 42
    command, envelope = seen[0]
    assert command == ReplayParked(durable="d", position=3)
    assert (envelope.correlation_id, envelope.causation_id, envelope.command_id) == (
        correlation,
        causation,
        command_id,
    )
    assert (envelope.actor, envelope.source_ip) == ("user:alice", "10.0.0.1")


async def test_no_owner_is_unavailable_at_once(bus_server: EmbeddedNats) -> None:
    async with sending(bus_server) as sender, asyncio.timeout(20):
        with pytest.raises(Unavailable, match="no billing is running"):
            await sender.send(OWNER, Ping(), correlation_id=uuid4(), timeout_s=30)


async def test_silent_owner_is_unavailable_after_the_timeout(bus_server: EmbeddedNats) -> None:
    released = asyncio.Event()

    async def slow(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        await released.wait()
        return CommandReply()

    async with serving(bus_server, {Ping: slow}), sending(bus_server) as sender:
        with pytest.raises(Unavailable, match="did not answer ping"):
            await sender.send(OWNER, Ping(), correlation_id=uuid4(), timeout_s=0.2)
        released.set()


async def test_absent_nats_is_unavailable_after_the_timeout(bus_server: EmbeddedNats) -> None:
    async with sending(bus_server) as sender:
        bus_server.stop()
        with pytest.raises(Unavailable):
            await sender.send(OWNER, Ping(), correlation_id=uuid4(), timeout_s=0.3)
        bus_server.start()


async def test_refusal_comes_back_with_code_detail_and_fields(bus_server: EmbeddedNats) -> None:
    job_id = uuid4()

    async def refusing(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        raise Rejected("invalid_job_state", "it is over", job_id=job_id)

    async with serving(bus_server, {Ping: refusing}), sending(bus_server) as sender:
        with pytest.raises(Rejected) as refused:
            await sender.send(OWNER, Ping(), correlation_id=uuid4())
    assert (refused.value.code, refused.value.detail) == ("invalid_job_state", "it is over")
    assert refused.value.fields == {"job_id": str(job_id)}


async def test_owner_that_cannot_now_is_unavailable_with_its_own_delay(bus_server: EmbeddedNats) -> None:
    async def deferring(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        raise Unavailable("the log does not answer", retry_after_s=9)

    async with serving(bus_server, {Ping: deferring}), sending(bus_server) as sender:
        with pytest.raises(Unavailable, match="the log does not answer") as away:
            await sender.send(OWNER, Ping(), correlation_id=uuid4())
    assert away.value.retry_after_s == 9


async def test_bug_in_a_handler_is_answered_and_does_not_stop_the_server(bus_server: EmbeddedNats) -> None:
    async def broken(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        raise ZeroDivisionError("password=hunter2")

    handlers: dict[type[Command], CommandHandler] = {Ping: broken, Blob: accepted}
    async with serving(bus_server, handlers), sending(bus_server) as sender:
        with structlog.testing.capture_logs() as lines, pytest.raises(Rejected) as failed:
            await sender.send(OWNER, Ping(), correlation_id=uuid4())
        assert (await sender.send(OWNER, Blob(data=""), correlation_id=uuid4())).position == 7
    assert failed.value.code == "internal_error"
    assert "hunter2" not in failed.value.detail
    assert [line for line in lines if line["event"] == "commands.command.failed" and line["exc_info"]]


async def test_unknown_or_malformed_payload_is_refused(bus_server: EmbeddedNats) -> None:
    async with serving(bus_server, {Ping: accepted}), sending(bus_server) as sender:
        with pytest.raises(Rejected) as unknown:
            await sender.send(OWNER, Blob(data=""), correlation_id=uuid4())
        assert unknown.value.code == "invalid_payload"
    async with serving(bus_server, {Ping: accepted}), connected_bus(bus_server, "gateway") as bus:
        answer = await bus.client.request(f"cmd.{OWNER}.ping", b"\xff not json", timeout=30)
        assert b"invalid_payload" in answer.data


async def test_too_large_command_is_refused_before_it_is_sent(bus_server: EmbeddedNats) -> None:
    async with sending(bus_server) as sender:
        with pytest.raises(Rejected) as refused:
            await sender.send(OWNER, Blob(data="x" * MAX_COMMAND_BYTES), correlation_id=uuid4())
    assert refused.value.code == "payload_too_large"


async def test_too_large_answer_is_an_internal_error(bus_server: EmbeddedNats) -> None:
    async def talkative(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        return CommandReply(data={"text": "x" * 8_000_000})

    async with serving(bus_server, {Ping: talkative}), sending(bus_server) as sender:
        with pytest.raises(Rejected) as failed:
            await sender.send(OWNER, Ping(), correlation_id=uuid4())
    assert failed.value.code == "internal_error"


async def test_each_command_is_handled_by_one_replica(bus_server: EmbeddedNats) -> None:
    counts = [0, 0]

    def counting(replica: int) -> Callable[[Ping, CommandEnvelope], Awaitable[CommandReply]]:
        async def handler(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
            counts[replica] += 1
            return CommandReply()

        return handler

    async with (
        serving(bus_server, {Ping: counting(0)}),
        serving(bus_server, {Ping: counting(1)}),
        sending(bus_server) as sender,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(100):
            tasks.create_task(sender.send(OWNER, Ping(), correlation_id=uuid4()))
    assert sum(counts) == 100
    assert min(counts) > 0


async def test_stop_finishes_the_command_in_flight_and_takes_no_other(bus_server: EmbeddedNats) -> None:
    begun, released, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        begun.set()
        await released.wait()
        return CommandReply(position=1)

    async with sending(bus_server) as sender, serving(bus_server, {Ping: slow}, stop), asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(sender.send(OWNER, Ping(), correlation_id=uuid4()))
        await begun.wait()
        stop.set()
        await _no_owner(sender)
        released.set()
    assert answer.result().position == 1


async def test_command_that_does_not_end_in_time_is_cancelled_at_the_stop(bus_server: EmbeddedNats) -> None:
    begun, cancelled, stop, ready = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endless(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return CommandReply()

    async with (
        connected_bus(bus_server, OWNER) as bus,
        sending(bus_server) as sender,
        asyncio.timeout(60),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(CommandServer(bus, OWNER, {Ping: endless}).run(stop, drain_s=0.2, ready=ready))
        await ready.wait()
        asked = tasks.create_task(_unanswered(sender))
        await begun.wait()
        stop.set()
    assert cancelled.is_set()
    assert asked.result()


async def _unanswered(sender: CommandSender) -> bool:
    try:
        await sender.send(OWNER, Ping(), correlation_id=uuid4(), timeout_s=1)
    except Unavailable:
        return True
    return False


async def _no_owner(sender: CommandSender) -> None:
    """Returns when the owner has left its queue group."""
    async with asyncio.timeout(60):
        while True:
            try:
                await sender.send(OWNER, Ping(), correlation_id=uuid4(), timeout_s=0.05)
            except Unavailable as away:
                if isinstance(away.__context__, NoRespondersError):
                    return


async def test_log_lines_of_a_handler_name_its_story(bus_server: EmbeddedNats) -> None:
    correlation = uuid4()
    bound: list[dict[str, object]] = []

    async def noting(_command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        bound.append(structlog.contextvars.get_contextvars())
        return CommandReply()

    async with serving(bus_server, {Ping: noting}), sending(bus_server) as sender:
        await sender.send(OWNER, Ping(), correlation_id=correlation)
    assert bound[0]["correlation_id"] == str(correlation)
    assert bound[0]["command"] == "ping"
