"""What workers and their administrators ask of the bridge, which owns the workers."""

import secrets
from typing import Any
from uuid import UUID

import msgspec

from services.gateway.domain.refusals import invalid
from services.gateway.domain.tokens import token_digest
from services.gateway.domain.worker_bodies import (
    CreateWorkerRequest,
    HeartbeatRequest,
    JobStatusUpdate,
    KnownWorker,
    WorkerRegistrationRequest,
    check_registration,
    id_of,
    make_token,
    reported_status,
)
from services.gateway.handlers import Principal
from shared.contracts.job import Command
from shared.contracts.worker import (
    BeatWorker,
    CreateWorker,
    DrainWorker,
    ReadWorkerOrders,
    ReadWorkers,
    RegisterWorker,
    RemoveWorker,
    ReportWorkerJob,
    ResumeWorker,
    RotateWorkerToken,
    WorkerItem,
    WorkerOrders,
    WorkerStatus,
)
from shared.ids import new_id
from shared.messaging.commands import CommandSender

OWNER = "provider_bridge"
_SECRET_BYTES = 32
_MAX_PRICE_USD = 1_000_000
_MICRO = 1_000_000


class WorkerCommands:
    """Each method sends one command. Raises Rejected, or Unavailable when no bridge runs."""

    def __init__(self, sender: CommandSender) -> None:
        self._sender = sender

    # ---- administrators ----------------------------------------------------------------------------------------------

    async def create(self, body: CreateWorkerRequest, principal: Principal) -> tuple[UUID, str]:
        """The new worker's id and its token, of which only the digest is kept."""
        check_registration(body.name, body.labels, {})
        if not 0 <= body.price_usd_per_hour <= _MAX_PRICE_USD:
            raise invalid(
                "price_usd_per_hour", "a price is 0 or more", "Leave it out for a machine that costs nothing."
            )
        worker_id = new_id()
        token = make_token(worker_id, secrets.token_urlsafe(_SECRET_BYTES))
        command = CreateWorker(
            worker_id=worker_id,
            name=body.name.strip(),
            worker_type=body.worker_type,
            labels=body.labels,
            token_sha256=token_digest(token),
            price_micro_usd_per_hour=round(body.price_usd_per_hour * _MICRO),
        )
        await self._administer(worker_id, command, principal)
        return worker_id, token

    async def rotate(self, worker_id: UUID, principal: Principal) -> str:
        """A new token; the old one is refused from here on."""
        token = make_token(worker_id, secrets.token_urlsafe(_SECRET_BYTES))
        command = RotateWorkerToken(worker_id=worker_id, token_sha256=token_digest(token))
        await self._administer(worker_id, command, principal)
        return token

    async def drain(self, worker_id: UUID, principal: Principal) -> None:
        """It gets no more jobs."""
        await self._administer(worker_id, DrainWorker(worker_id=worker_id), principal)

    async def resume(self, worker_id: UUID, principal: Principal) -> None:
        """It gets jobs again."""
        await self._administer(worker_id, ResumeWorker(worker_id=worker_id), principal)

    async def remove(self, worker_id: UUID, principal: Principal, *, force: bool) -> None:
        """It is forgotten."""
        await self._administer(worker_id, RemoveWorker(worker_id=worker_id, force=force), principal)

    async def read(self, status: WorkerStatus | None, principal: Principal) -> list[WorkerItem]:
        """Every worker, or those of one status."""
        data = await self._administer(new_id(), ReadWorkers(status=status), principal)
        return msgspec.convert(data["workers"], list[WorkerItem])

    # ---- workers -----------------------------------------------------------------------------------------------------

    async def register(self, known: KnownWorker, body: WorkerRegistrationRequest, ip: str | None) -> dict[str, Any]:
        """`{"resume_job", "abandon_job"}`."""
        check_registration(body.name, body.labels, body.gpu_info)
        command = RegisterWorker(
            worker_id=known.worker_id,
            token_sha256=known.token_sha256,
            name=body.name.strip(),
            gpu_info=body.gpu_info,
            labels=body.labels,
            provider=body.provider,
            current_job_id=body.current_job_id,
            current_attempt_id=id_of(body.current_attempt_id, "current_attempt_id"),
        )
        return await self._tell(known, command, ip)

    async def beat(self, known: KnownWorker, body: HeartbeatRequest, ip: str | None) -> str | None:
        """The job that it is to abandon."""
        command = BeatWorker(
            worker_id=known.worker_id,
            token_sha256=known.token_sha256,
            status=body.status[:32],
            current_job_id=body.current_job_id,
            current_attempt_id=id_of(body.current_attempt_id, "current_attempt_id"),
            job_progress=body.job_progress,
            gpu_utilization=body.gpu_utilization,
            vram_used_gb=body.vram_used_gb,
        )
        return (await self._tell(known, command, ip)).get("abandon_job")

    async def report(self, known: KnownWorker, job_id: UUID, body: JobStatusUpdate, ip: str | None) -> None:
        """What became of a run."""
        command = ReportWorkerJob(
            worker_id=known.worker_id,
            token_sha256=known.token_sha256,
            job_id=job_id,
            status=reported_status(body.status),
            attempt_id=id_of(body.attempt_id, "attempt_id"),
            exit_code=body.exit_code,
            error=body.error,
            ended_s_ago=body.ended_s_ago,
        )
        await self._tell(known, command, ip)

    async def orders(self, known: KnownWorker) -> WorkerOrders:
        """All that it is to know now."""
        command = ReadWorkerOrders(worker_id=known.worker_id, token_sha256=known.token_sha256)
        return msgspec.convert(await self._tell(known, command, None), WorkerOrders)

    async def _administer(self, worker_id: UUID, command: Command, principal: Principal) -> dict[str, Any]:
        reply = await self._sender.send(
            OWNER, command, correlation_id=worker_id, actor=principal.actor, source_ip=principal.source_ip
        )
        return reply.data

    async def _tell(self, known: KnownWorker, command: Command, ip: str | None) -> dict[str, Any]:
        actor = f"worker:{known.worker_id}"
        reply = await self._sender.send(OWNER, command, correlation_id=known.worker_id, actor=actor, source_ip=ip)
        return reply.data
