"""Answers about jobs: the view, the log, and the owners who keep what no view holds. Nothing here changes anything."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.gateway.domain.job_body import JobBody, Status, job_body
from services.gateway.domain.views import JobView, fold_job
from services.gateway.projections.jobs import JobFilter, JobsView
from shared.clock import Clock
from shared.contracts.account import ReadJobCost
from shared.contracts.artifact import ReadReports
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import ReadQueue
from shared.contracts.subjects import GATEWAY_JOBS_VIEW
from shared.eventstore.api import EventStore
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.problems import Rejected
from shared.service import Runtime

OWN_WRITES_S = 1.0
"""How long an answer waits for the view to pass the caller's own write; after that it is folded from the log."""


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a job's report lines; `cursors[i]` is the cursor after `lines[i]`, `cursor` where to read on."""

    lines: list[dict[str, Any]]
    cursors: list[int]
    cursor: int


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was at a position of the log."""

    view: JobView
    position: int
    now: datetime


class JobReads:
    """Reads for HTTP routes and streams. Raises Unavailable when Postgres or an owner is away."""

    def __init__(self, runtime: Runtime, jobs: JobsView) -> None:
        self._runtime = runtime
        self._store: EventStore = runtime.store
        self._sender: CommandSender = runtime.sender
        self._clock: Clock = runtime.clock
        self.jobs = jobs

    def now(self) -> datetime:
        """The present moment of this service's clock."""
        return self._clock()

    async def view(self, job_id: UUID, *, with_deleted: bool = False) -> JobView:
        """The job; folded from the log when the view has not got there. Raises `job_not_found`."""
        view = await self.jobs.one(job_id)
        if view is None or not view.exists:
            view = fold_job(job_id, await self._store.read_correlated(job_id))
        return self._found(view, with_deleted=with_deleted)

    async def view_after(self, job_id: UUID, position: int) -> JobView:
        """The job with everything up to `position` in it: a caller reads what it just wrote."""
        if await self.wait_for(position, OWN_WRITES_S):
            view = await self.jobs.one(job_id)
            if view is not None and view.exists and view.position >= position:
                return view
        return self._found(fold_job(job_id, await self._store.read_correlated(job_id)), with_deleted=True)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Whether the view passed `position` within the time."""
        consumer = self._runtime.consumers.get(GATEWAY_JOBS_VIEW.name)
        return consumer is not None and await consumer.wait_for(position, timeout_s)

    async def caught_up(self, timeout_s: float) -> bool:
        """Whether the view passed what the log holds now within the time."""
        return await self.wait_for(await self._store.head(), timeout_s)

    async def at(self, job_id: UUID, moment: int | datetime) -> Moment:
        """The job as it was at a position or a time. Raises `job_not_found` for a time before its submit."""
        position = moment if isinstance(moment, int) else await self._store.position_at(moment)
        history = await self._store.read_correlated(job_id, up_to=position)
        view = self._found(fold_job(job_id, history), with_deleted=True)
        # A time to come is answered as of now: what has not been used yet costs nothing.
        now = min(moment, self._clock()) if isinstance(moment, datetime) else history[-1].recorded_at
        return Moment(view=view, position=position, now=now)

    async def history(self, job_id: UUID) -> list[RecordedEvent]:
        """Every event of the job's story, in position order. Raises `job_not_found`."""
        history = await self._store.read_correlated(job_id)
        self._found(fold_job(job_id, history), with_deleted=True)
        return history

    async def body(self, view: JobView) -> JobBody:
        """The job as clients see it now."""
        return (await self.bodies([view]))[0]

    async def bodies(self, views: Sequence[JobView]) -> list[JobBody]:
        """The jobs as clients see them now, with the places of those that wait."""
        waiting = [view.job_id for view in views if view.job.phase in {"unknown", "submitted", "queued"}]
        places = await self.jobs.places(waiting) if waiting else {}
        now = self._clock()
        return [job_body(view, now=now, queue_position=places.get(view.job_id)) for view in views]

    async def page(
        self, *, status: Status | None, provider: str | None, local: bool | None, limit: int, offset: int
    ) -> tuple[list[JobBody], int]:
        """One page of the listed jobs, and how many there are in all."""
        wanted = JobFilter(status=status, provider=provider, local=local)
        views = await self.jobs.page(wanted, limit=limit, offset=offset)
        return await self.bodies(views), await self.jobs.total(wanted)

    async def reports(
        self, job_id: UUID, *, after: int = 0, types: Sequence[str] = (), limit: int = 1000, tail: bool = False
    ) -> Reports:
        """A page of report lines from storage, in arrival order."""
        command = ReadReports(job_id=job_id, after=after, types=list(types), limit=limit, tail=tail)
        reply = await self._sender.send("storage", command, correlation_id=job_id, actor="system:gateway")
        return msgspec.convert(reply.data, Reports)

    async def cost(self, job_id: UUID) -> dict[str, Any]:
        """What billing's ledger says of the job. Raises `not_found` before anything was reserved."""
        command = ReadJobCost(job_id=job_id)
        reply = await self._sender.send("billing", command, correlation_id=job_id, actor="system:gateway")
        return reply.data

    async def queue(self) -> dict[str, Any]:
        """Who holds the slots and who waits, as the scheduler would go on."""
        reply = await self._sender.send("scheduler", ReadQueue(), correlation_id=new_id(), actor="system:gateway")
        return reply.data

    async def feed(self, *, after: int, limit: int) -> list[RecordedEvent]:
        """A page of the whole log."""
        return await self._store.read(after=after, limit=limit)

    @staticmethod
    def _found(view: JobView, *, with_deleted: bool) -> JobView:
        if not view.exists or (view.job.deleted_at is not None and not with_deleted):
            raise Rejected("job_not_found", "there is no such job", job_id=str(view.job_id))
        return view
