"""Commands: core NATS requests to the owner's queue group, answered after the owner's commit.

Nothing is stored on the way. A sender that hears nothing sends again with the same `command_id`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Union
from uuid import UUID

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from opentelemetry.trace import Span, SpanKind

from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.job import Command
from shared.contracts.subjects import command_subject
from shared.ids import new_id
from shared.messaging.connection import Bus
from shared.observability import metrics, names, tracing
from shared.problems import Rejected, Unavailable

CommandHandler = Callable[[Any, CommandEnvelope], Awaitable[CommandReply]]
"""`handler(command, envelope)`: answers after its commit, or raises Rejected or Unavailable."""

MAX_COMMAND_BYTES = 4 * 1024 * 1024
MAX_WEBHOOK_BYTES = 10 * 1024 * 1024
LARGE_COMMANDS = {"receive_webhook": MAX_WEBHOOK_BYTES * 4 // 3 + 256 * 1024}
"""Tag -> size, of those that may be larger: a body as base64, and what is around it. NATS takes up to 16 MB."""
MAX_REPLY_BYTES = 7 * 1024 * 1024
MAX_IN_FLIGHT = 256
_MAX_WAITING = 4096
_SILENT = (nats.errors.Error, TimeoutError, OSError)
_UNAVAILABLE = "service_unavailable"
_INTERNAL = "internal_error"

log = structlog.stdlib.get_logger()


def command_tag(kind: type[Command]) -> str:
    """`submit_job` for SubmitJob."""
    return str(kind.__struct_config__.tag)


class CommandSender:
    """Sends commands to their owners and gives back the owners' answers."""

    def __init__(self, bus: Bus) -> None:
        self._client = bus.client

    async def send(
        self,
        owner: str,
        command: Command,
        *,
        correlation_id: UUID,
        causation_id: UUID | None = None,
        actor: str = "system",
        command_id: UUID | None = None,
        source_ip: str | None = None,
        timeout_s: float = 5.0,
    ) -> CommandReply:
        """The owner's answer, given after its commit. The same `command_id` is the same request.

        Raises:
            Rejected: the owner refused, or met a bug of its own (`internal_error`).
            Unavailable: no owner runs (known at once), or none answered in time.
        """
        tag = command_tag(type(command))
        attributes = {names.CORRELATION_ID: str(correlation_id)}
        with tracing.span(names.send_command(tag, owner), kind=SpanKind.CLIENT, attributes=attributes):
            envelope = CommandEnvelope(
                command_id=command_id or new_id(),
                correlation_id=correlation_id,
                causation_id=causation_id,
                actor=actor,
                source_ip=source_ip,
                traceparent=tracing.current_traceparent(),
                payload=msgspec.Raw(msgspec.json.encode(command)),
            )
            body = msgspec.json.encode(envelope)
            limit = LARGE_COMMANDS.get(tag, MAX_COMMAND_BYTES)
            if len(body) > limit:
                raise Rejected("payload_too_large", f"{tag} is larger than {limit} bytes")
            answer = await self._request(owner, tag, body, timeout_s)
        return _unwrap(owner, answer)

    async def _request(self, owner: str, tag: str, body: bytes, timeout_s: float) -> CommandReply:
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._client.request(command_subject(owner, tag), body, timeout=timeout_s)
        except nats.errors.NoRespondersError:
            raise Unavailable(f"no {owner} is running") from None
        except _SILENT as error:
            raise Unavailable(f"{owner} did not answer {tag} within {timeout_s:g} s") from error
        return msgspec.json.decode(message.data, type=CommandReply)


def _unwrap(owner: str, reply: CommandReply) -> CommandReply:
    if reply.error_code is None:
        return reply
    if reply.error_code == _UNAVAILABLE:
        retry_after_s = int(reply.error_fields.get("retry_after_s", 2))
        raise Unavailable(reply.error_detail or f"{owner} cannot do this now", retry_after_s=retry_after_s)
    raise Rejected(reply.error_code, reply.error_detail or "", **reply.error_fields)


class CommandServer:
    """Answers `cmd.<owner>.>` as one of the owner's replicas, at most MAX_IN_FLIGHT commands at a time."""

    def __init__(self, bus: Bus, owner: str, handlers: Mapping[type[Command], CommandHandler]) -> None:
        self._client = bus.client
        self._owner = owner
        self._handlers = handlers
        self._decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Union[tuple(handlers)])  # noqa: UP007
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._tasks = asyncio.TaskGroup()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._subscription: NatsSubscription | None = None

    async def run(self, stop: asyncio.Event, *, drain_s: float = 10.0, ready: asyncio.Event | None = None) -> None:
        """Serves until `stop` is set; then takes no more and finishes those in flight within `drain_s`."""
        async with self._tasks:
            self._subscription = await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType] - nats-py leaves a future untyped
                command_subject(self._owner, ">"),
                queue=self._owner,
                cb=self._accept,
                pending_msgs_limit=_MAX_WAITING,
            )
            # Shielded: nats-py stops reading for good when a flush that is under way is cancelled.
            await asyncio.shield(self._client.flush())
            if ready is not None:
                ready.set()
            await stop.wait()
            await self._drain(drain_s)

    async def _drain(self, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s):
                await self._unsubscribe()
                while self._in_flight:
                    await asyncio.wait(self._in_flight)
        except TimeoutError:
            log.error("commands.drain.overran", in_flight=len(self._in_flight), drain_s=drain_s)  # noqa: TRY400
            for task in self._in_flight:
                task.cancel()

    async def _unsubscribe(self) -> None:
        if self._subscription is None:
            return
        try:
            await self._subscription.drain()
        except (nats.errors.Error, OSError) as error:  # the connection is down: nothing more can arrive
            log.warning("commands.unsubscribe.failed", error=repr(error))

    async def _accept(self, message: Msg) -> None:
        await self._slots.acquire()
        task = self._tasks.create_task(self._serve(message))
        self._in_flight.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._slots.release()

    async def _serve(self, message: Msg) -> None:
        started = time.monotonic()
        reply, tag = await self._answer(message)
        body = msgspec.json.encode(reply)
        if len(body) > MAX_REPLY_BYTES:
            log.error("commands.reply.too_large", command=tag, size_bytes=len(body))
            reply = CommandReply(error_code=_INTERNAL, error_detail=f"the answer to {tag} is too large")
            body = msgspec.json.encode(reply)
        outcome = {names.COMMAND: tag, names.OUTCOME: reply.error_code or "accepted"}
        metrics.commands.add(1, outcome)
        metrics.command_duration.record(time.monotonic() - started, outcome)
        if not message.reply:
            return
        try:
            await self._client.publish(message.reply, body)
        except (nats.errors.Error, OSError) as error:  # the sender will ask again with the same command_id
            log.warning("commands.reply.lost", command=tag, error=repr(error))

    async def _answer(self, message: Msg) -> tuple[CommandReply, str]:
        tag = message.subject.rpartition(".")[2]
        if len(message.data) > LARGE_COMMANDS.get(tag, MAX_COMMAND_BYTES):
            return CommandReply(error_code="payload_too_large", error_detail=f"{tag} is too large"), tag
        try:
            envelope = msgspec.json.decode(message.data, type=CommandEnvelope)
            command = self._decoder.decode(envelope.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return CommandReply(error_code="invalid_payload", error_detail=f"{tag}: {error}"), tag
        tag = command_tag(type(command))
        with (
            structlog.contextvars.bound_contextvars(**_log_keys(tag, envelope)),
            tracing.span(
                names.process_command(tag, self._owner), kind=SpanKind.SERVER, traceparent=envelope.traceparent
            ) as span,
        ):
            current = msgspec.structs.replace(envelope, traceparent=tracing.current_traceparent())
            return await self._call(command, current, span), tag

    async def _call(self, command: Command, envelope: CommandEnvelope, span: Span) -> CommandReply:
        try:
            return await self._handlers[type(command)](command, envelope)
        except Rejected as refusal:
            log.info("commands.command.refused", error_code=refusal.code, detail=refusal.detail)
            return CommandReply(
                error_code=refusal.code, error_detail=refusal.detail, error_fields=_plain(refusal.fields)
            )
        except Unavailable as away:
            tracing.mark_failed(span, away.detail)
            log.warning("commands.command.deferred", detail=away.detail)
            fields = {"retry_after_s": away.retry_after_s}
            return CommandReply(error_code=_UNAVAILABLE, error_detail=away.detail, error_fields=fields)
        except Exception as bug:
            span.record_exception(bug)
            tracing.mark_failed(span, type(bug).__name__)
            log.exception("commands.command.failed")
            return CommandReply(error_code=_INTERNAL, error_detail=f"{self._owner} failed; see its log")


def _log_keys(tag: str, envelope: CommandEnvelope) -> dict[str, str]:
    return {
        names.COMMAND: tag,
        names.COMMAND_ID: str(envelope.command_id),
        names.CORRELATION_ID: str(envelope.correlation_id),
        names.CAUSATION_ID: str(envelope.causation_id),
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return msgspec.to_builtins(fields, enc_hook=str)
