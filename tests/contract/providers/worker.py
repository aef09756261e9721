"""Own workers on a real Postgres; the machines' side is a stand-in that asks and tells as an agent does."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.outbound.credential_key import CredentialKey
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.worker_store import WorkerStore
from services.provider_bridge.outbound.workers import WorkersProvider
from services.provider_bridge.worker_handlers import WorkerHandlers
from shared.clock import utc_now
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.worker import (
    CreateWorker,
    ReadWorkerOrders,
    RegisterWorker,
    ReportedStatus,
    ReportWorkerJob,
    WorkerJob,
    WorkerOrders,
)
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.support.log import LogDatabase

DIGEST = hashlib.sha256(b"a-worker's-token").hexdigest()
KEY = "a key that only tests have, and everybody may read"
FORCED = 137


def envelope() -> CommandEnvelope:
    """What the command server would hand over."""
    return CommandEnvelope(command_id=new_id(), correlation_id=new_id(), payload=msgspec.Raw(b"{}"))


class StandInWorker:
    """One machine: takes what it is told, begins and ends runs when the test says so."""

    def __init__(self, handlers: WorkerHandlers, worker_id: UUID | None = None, **gpu: Any) -> None:
        self.handlers = handlers
        self.worker_id = worker_id or new_id()
        self.gpu = gpu
        self.job: WorkerJob | None = None
        self.begun: set[str] = set()
        self.may_begin: set[str] = set()
        self.ends: dict[str, int] = {}
        self.vanished: set[str] = set()

    async def create(self, **extra: Any) -> None:
        plain: dict[str, Any] = {"name": "stand-in", "worker_type": "persistent", "labels": {}}
        command = CreateWorker(worker_id=self.worker_id, token_sha256=DIGEST, **{**plain, **extra})
        await self.handlers.create(command, envelope())

    async def register(self, job: WorkerJob | None = None) -> dict[str, Any]:
        command = RegisterWorker(
            worker_id=self.worker_id,
            token_sha256=DIGEST,
            name="stand-in",
            gpu_info=self.gpu,
            labels={},
            current_job_id=job.job_id if job else None,
            current_attempt_id=UUID(job.attempt_id) if job else None,
        )
        return (await self.handlers.register(command, envelope())).data

    async def orders(self) -> WorkerOrders:
        command = ReadWorkerOrders(worker_id=self.worker_id, token_sha256=DIGEST)
        return msgspec.convert((await self.handlers.orders(command, envelope())).data, WorkerOrders)

    async def report(self, job: WorkerJob, status: ReportedStatus, **extra: Any) -> None:
        command = ReportWorkerJob(
            worker_id=self.worker_id,
            token_sha256=DIGEST,
            job_id=UUID(job.job_id),
            attempt_id=UUID(job.attempt_id),
            status=status,
            **extra,
        )
        await self.handlers.report(command, envelope())

    async def live(self) -> None:
        """Goes on until it is called off."""
        while True:
            await self.step()
            await asyncio.sleep(0.01)  # the pace of asking

    async def step(self) -> None:
        """One look at what it is told and at what the test wants."""
        orders = await self.orders()
        if orders.submit is not None and self.job is None:
            self.job = orders.submit
        job = self.job
        if job is None:
            return
        if job.attempt_id in self.vanished:
            self.job = None
            await self.register()
            return
        if job.attempt_id in self.may_begin and job.attempt_id not in self.begun:
            self.begun.add(job.attempt_id)
            await self.report(job, "running")
        code = self._code(job, orders)
        if code is not None:
            status: ReportedStatus = "completed" if code == 0 else "failed"
            await self.report(job, status, exit_code=code, error="its last words")
            self.job = None

    def _code(self, job: WorkerJob, orders: WorkerOrders) -> int | None:
        if orders.cancel is not None and orders.cancel.attempt_id == job.attempt_id:
            return FORCED if job.run_spec["config"].get("stubborn") else 75
        return self.ends.get(job.attempt_id)


class WorkerCase:
    """Two machines, so that a second start could take place."""

    def __init__(self, pool: asyncpg.Pool, store: PostgresEventStore) -> None:
        self.ahead = timedelta()
        self._pool = pool
        self._log = store
        self.store = self._store()
        handlers = WorkerHandlers(self.store, lambda _: None)
        self.machines = [StandInWorker(handlers), StandInWorker(handlers)]

    def _store(self) -> WorkerStore:
        return WorkerStore(self._pool, self._log, self._now, CredentialKey(KEY))

    def _now(self) -> datetime:
        return utc_now() + self.ahead

    def connect(self, *, installation: str = "", key: str | None = None) -> Provider:
        if key is not None or installation not in {"", "0a1b2c3d"}:
            not_here("a database is one installation's, and has no keys")
        return WorkersProvider(self._store())

    def starts(self, attempt_id: UUID) -> int:
        return sum(str(attempt_id) in machine.begun for machine in self.machines)

    def begin(self, attempt_id: UUID) -> None:
        for machine in self.machines:
            machine.may_begin.add(str(attempt_id))

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        for machine in self.machines:
            machine.ends[str(attempt_id)] = code

    def vanish(self, attempt_id: UUID) -> None:
        for machine in self.machines:
            machine.vanished.add(str(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:  # noqa: ARG002 - the protocol's signature
        not_here("its words are our own")

    def lose_next_reply(self) -> None:
        not_here("there is no call in between: tests/integration/workers cuts the database instead")

    def trouble(self, kind: Trouble | None) -> None:  # noqa: ARG002 - the protocol's signature
        not_here("there is no network in between")

    def lack(self, what: Lack | None) -> None:
        """Nobody has been heard of for a day."""
        if what == "funds":
            not_here("own workers are paid to nobody")
        self.ahead = timedelta(days=1) if what else timedelta()

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return []


@asynccontextmanager
async def worker_case(_folder: Path, database: LogDatabase) -> AsyncGenerator[Case]:
    async with asyncpg.create_pool(database.dsn("provider_bridge"), min_size=1, max_size=6) as pool:
        log = PostgresEventStore(pool)
        case = WorkerCase(pool, log)
        for machine in case.machines:
            await machine.create()
            await machine.register()
        living = [asyncio.create_task(machine.live()) for machine in case.machines]
        try:
            yield case
        finally:
            for task in living:
                task.cancel()
            ended = await asyncio.gather(*living, return_exceptions=True)
            await log.close()
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
