"""The gateway without its HTTP server: the real commands, report intake and token checks over a view that is kept in
memory by the real fold. The view's SQL is proven equal to that fold by the rebuild tests.
"""

from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg

from services.gateway.access import AttemptAccess
from services.gateway.domain.view_attempt import AttemptView
from services.gateway.domain.views import JobView, evolve_job_view, fold_job
from services.gateway.handlers import JobCommands, Principal
from services.gateway.intake import ReportIntake
from services.gateway.outbound.config_files import ConfigFiles
from services.gateway.outbound.idempotency import IdempotencyKeys
from services.gateway.projections.jobs import JobsView
from services.gateway.reads import JobReads
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import GATEWAY_JOBS_VIEW
from shared.messaging.consumer import Subscription
from shared.messaging.right_of_way import Claims
from shared.problems import Rejected
from shared.service import Runtime, ServiceParts
from tests.sim.connection import MemoryConnection
from tests.sim.process import Process

VIEWS = "jobs_view"
_OWN_WRITES_S = 1.0


async def _always_there(_provider: str, _principal: Principal) -> None:
    """The one provider needs no keys."""


async def _unheard(_subject: str) -> None:
    """A claim of the right of way may be lost: here none arrives."""


class GatewayDoors:
    """What people and trainers can ask of one gateway process."""

    def __init__(self, runtime: Runtime, process: Process) -> None:
        views = cast("JobsView", cast("Any", MemoryViews(runtime, process)))
        reads = cast("JobReads", cast("Any", MemoryReads(runtime, process)))
        self.access = AttemptAccess(runtime.store, views, reads)
        self.intake = ReportIntake(runtime.sender, self.access)
        self.commands = JobCommands(
            sender=runtime.sender,
            reads=reads,
            keys=IdempotencyKeys(runtime.pool),
            configs=ConfigFiles(Path("/nowhere")),
            clock=runtime.clock,
            providers=("local",),
            claims=Claims(_unheard),
            require_configured=_always_there,
        )


class MemoryViews:
    """`JobsView` over the committed rows."""

    def __init__(self, runtime: Runtime, process: Process) -> None:
        self._rows = cast("Any", runtime.pool).database.table("gateway", VIEWS)
        self._process = process

    async def one(self, job_id: UUID) -> JobView | None:
        """The job as far as it is folded."""
        await self._process.step("read:jobs_view")
        row = self._rows.get(job_id)
        return row["view"] if row else None

    async def attempts_of(self, job_id: UUID) -> list[AttemptView]:
        """Every attempt of one job that is folded."""
        view = await self.one(job_id)
        return list(view.attempts.values()) if view else []

    async def attempts_by_token(self, token_sha256: str) -> list[AttemptView]:
        """The attempt whose token has this digest."""
        await self._process.step("read:jobs_view")
        attempts = [attempt for row in self._rows.values() for attempt in row["view"].attempts.values()]
        return [attempt for attempt in attempts if attempt.token_sha256 == token_sha256]


class MemoryReads:
    """As much of `JobReads` as commands and token checks use."""

    def __init__(self, runtime: Runtime, process: Process) -> None:
        self._runtime = runtime
        self._jobs = MemoryViews(runtime, process)
        self.own_writes = _Forgotten()

    async def view(self, job_id: UUID, *, with_deleted: bool = False) -> JobView:
        """The job, from the log if the view has not got there."""
        view = await self._jobs.one(job_id)
        if view is None or not view.exists:
            view = fold_job(job_id, await self._runtime.store.read_correlated(job_id))
        if not view.exists or (view.job.deleted_at is not None and not with_deleted):
            raise Rejected("job_not_found", "there is no such job", job_id=str(job_id))
        return view

    async def view_after(self, job_id: UUID, position: int) -> JobView:
        """The job with everything up to `position` in it."""
        await self._runtime.consumers[GATEWAY_JOBS_VIEW.name].wait_for(position, _OWN_WRITES_S)
        view = await self._jobs.one(job_id)
        if view is not None and view.exists and view.position >= position:
            return view
        view = fold_job(job_id, await self._runtime.store.read_correlated(job_id))
        if not view.exists:
            raise Rejected("job_not_found", "there is no such job", job_id=str(job_id))
        return view

    async def caught_up(self, timeout_s: float) -> bool:
        """Whether the view passed what the log holds now."""
        head = await self._runtime.store.head()
        return await self._runtime.consumers[GATEWAY_JOBS_VIEW.name].wait_for(head, timeout_s)


class _Forgotten:
    """What the real reads remember of their own writes; here the log is asked."""

    def add(self, *_: object) -> None:
        """Nothing."""


async def project(connection: asyncpg.Connection, recorded: RecordedEvent) -> None:
    """Folds one event into the view of the job it is correlated with."""
    transaction = cast("MemoryConnection", cast("Any", connection)).open
    assert transaction is not None
    job_id = recorded.correlation_id
    row = transaction.get(VIEWS, job_id)
    before = row["view"] if row else JobView(job_id=job_id)
    view = evolve_job_view(before, recorded, catalogue.decode(recorded))
    if view is not before:
        transaction.put(VIEWS, job_id, {"view": view})


def build_gateway(runtime: Runtime, process: Process) -> ServiceParts:
    """The view's consumer; requests go through `process.parts`."""
    process.parts = GatewayDoors(runtime, process)
    return ServiceParts(subscriptions=[Subscription(durable=GATEWAY_JOBS_VIEW, project=project)])
