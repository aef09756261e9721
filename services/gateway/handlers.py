"""What a request asks of the owners: stamp who asks, send the command, wait for the own view, answer."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec

from services.gateway.domain.job_body import Status, status_of
from services.gateway.domain.submission import (
    LoadedConfig,
    SubmitJobRequest,
    SubmitJobResponse,
    check_provider,
    check_source,
    priority_number,
    request_digest,
    submit_command,
)
from services.gateway.outbound.config_files import ConfigFiles
from services.gateway.outbound.idempotency import IdempotencyKeys
from services.gateway.reads import JobReads
from shared.clock import Clock
from shared.contracts.attempt import AskTrainer, TrainerCommandName
from shared.contracts.envelope import CommandReply
from shared.contracts.job import CancelJob, Command, DeleteJob, SubmitJob
from shared.ids import derived_id, new_id
from shared.messaging.commands import CommandSender
from shared.messaging.right_of_way import Claims
from shared.problems import Rejected

OWNER = "scheduler"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and from where. `actor` is what the log keeps."""

    user_id: str
    is_admin: bool
    source_ip: str | None

    @property
    def actor(self) -> str:
        """`user:local`."""
        return f"user:{self.user_id}"


RequireConfigured = Callable[[str, Principal], Awaitable[None]]
"""Refuses with `provider_not_configured` a provider whose keys are not there."""


class JobCommands:
    """Submit, cancel and delete: each answer shows the job with the caller's own write in it."""

    def __init__(
        self,
        *,
        sender: CommandSender,
        reads: JobReads,
        keys: IdempotencyKeys,
        configs: ConfigFiles,
        clock: Clock,
        providers: tuple[str, ...],
        claims: Claims,
        require_configured: RequireConfigured,
    ) -> None:
        self._sender = sender
        self._claims = claims
        self._reads = reads
        self._keys = keys
        self._configs = configs
        self._clock = clock
        self._providers = providers
        self._require_configured = require_configured

    async def submit(
        self, body: SubmitJobRequest, *, provider: str, key: str | None, principal: Principal
    ) -> SubmitJobResponse:
        """Accepts a job once per idempotency key, however often and from wherever it is sent.

        Raises Rejected or ConfigRejected when it may not be accepted, Unavailable when nobody could accept it.
        """
        check_provider(provider, self._providers)
        check_source(body)
        priority_number(body.priority)
        digest = b"" if key is None else request_digest(body, provider)
        if key is not None and (known := await self._accepted_before(key, digest, principal)) is not None:
            return known
        command = submit_command(
            body, await self._loaded(body), job_id=new_id(), user_id=principal.user_id, provider=provider, key=key
        )
        await self._require_configured(provider, principal)
        hit = False
        if key is not None:
            claim = await self._keys.claim(principal.user_id, key, digest, job_id=command.job_id, now=self._clock())
            command, hit = msgspec.structs.replace(command, job_id=claim.job_id), claim.hit
        reply = await self._send_submit(command, principal)
        return await self._answer(command.job_id, reply, hit=hit)

    async def cancel(self, job_id: UUID, principal: Principal) -> Status:
        """Asks for the job's end; it may still be ending when this returns."""
        reply = await self._send(CancelJob(job_id=job_id), job_id, principal)
        return status_of(await self._reads.view_after(job_id, reply.position))

    async def ask_trainer(self, job_id: UUID, name: TrainerCommandName, principal: Principal) -> AskTrainer:
        """Asks the job's running trainer to save or show what it has. Raises `invalid_job_state` when none runs."""
        attempt = (await self._reads.view(job_id)).current_attempt
        if attempt is None or attempt.state != "running":
            raise Rejected("invalid_job_state", "no trainer of this job is running that could be asked")
        command = AskTrainer(attempt_id=attempt.attempt_id, command_id=new_id(), name=name)
        reply = await self._send(command, job_id, principal, owner="provider_bridge")
        self._reads.own_writes.add(job_id, reply.position)
        return command

    async def delete(self, job_id: UUID, principal: Principal) -> None:
        """Hides a job that has ended."""
        reply = await self._send(DeleteJob(job_id=job_id), job_id, principal)
        await self._reads.view_after(job_id, reply.position)

    async def _accepted_before(self, key: str, digest: bytes, principal: Principal) -> SubmitJobResponse | None:
        """The answer for a key whose job is in the log already: its config need not be there any more."""
        job_id = await self._keys.standing(principal.user_id, key, digest, self._clock())
        if job_id is None:
            return None
        try:
            view = await self._reads.view(job_id, with_deleted=True)
        except Rejected:  # claimed, but never sent: send it now, with the same job id
            return None
        return SubmitJobResponse(job_id=str(job_id), status=status_of(view), idempotent_hit=True)

    async def _loaded(self, body: SubmitJobRequest) -> LoadedConfig:
        if body.config_name_to_load is not None:
            return await self._configs.load(body.config_name_to_load)
        return LoadedConfig(name=None, config=body.config or {}, dataloader=body.dataloader_config or [])

    async def _send_submit(self, command: SubmitJob, principal: Principal) -> CommandReply:
        # The same job is the same command: requests that race under one key are one submit.
        return await self._send(command, command.job_id, principal, command_id=derived_id(command.job_id, "submit"))

    async def _answer(self, job_id: UUID, reply: CommandReply, *, hit: bool) -> SubmitJobResponse:
        """A job that is new is as the scheduler says; one that was there may have come further since."""
        if hit or reply.position == 0:
            view = await self._reads.view_after(job_id, reply.position)
            return SubmitJobResponse(job_id=str(job_id), status=status_of(view), idempotent_hit=hit)
        self._reads.own_writes.add(job_id, reply.position)
        return SubmitJobResponse(job_id=str(job_id), status=reply.data["status"], idempotent_hit=False)

    async def _send(
        self,
        command: Command,
        job_id: UUID,
        principal: Principal,
        *,
        owner: str = OWNER,
        command_id: UUID | None = None,
    ) -> CommandReply:
        async with self._claims.waited_for():
            return await self._sender.send(
                owner,
                command,
                correlation_id=job_id,
                actor=principal.actor,
                command_id=command_id,
                source_ip=principal.source_ip,
            )


def cancelled_answer(job_id: UUID) -> dict[str, Any]:
    """The documented answer to a cancel that was accepted."""
    return {"success": True, "job_id": str(job_id), "status": "cancelled"}
