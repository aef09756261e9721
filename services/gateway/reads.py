"""Answers about jobs: the view, the log, and the owners who keep what no view holds. Nothing here changes anything."""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from services.gateway.bodies import JobBodies
from services.gateway.domain.job_body import JobBody, Status
from services.gateway.domain.job_metrics import first_day
from services.gateway.domain.job_sums import Sums
from services.gateway.domain.views import JobView, fold_job
from services.gateway.joined_reads import JoinedReads
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
"""How long a list waits for the view to pass what was written through this gateway; one job is folded from the log."""
KEPT_WRITES = 10_000


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a job's report lines; `cursors[i]` is the cursor after `lines[i]`, `cursor` where to read on."""

    lines: list[dict[str, Any]]
    cursors: list[int]
    cursor: int


class OwnWrites:
    """Up to where this gateway has written, in all and for each of the jobs it wrote to last.

    An answer to a write need not wait for the view: whoever reads afterwards does, if the view is still behind.
    """

    def __init__(self) -> None:
        self._of_job: OrderedDict[UUID, int] = OrderedDict()
        self._forgotten = 0
        self.position = 0

    def add(self, job_id: UUID, position: int) -> None:
        """Remembers a write that was answered; position 0 changed nothing."""
        if position <= self._of_job.get(job_id, 0):
            return
        self._of_job[job_id] = position
        self._of_job.move_to_end(job_id)
        self.position = max(self.position, position)
        if len(self._of_job) > KEPT_WRITES:
            self._forgotten = max(self._forgotten, self._of_job.popitem(last=False)[1])

    def of_job(self, job_id: UUID, seen: int) -> int:
        """The position that a view of the job must have passed, given that all the jobs are seen up to `seen`."""
        # A write that was forgotten and not seen yet may have been this job's.
        return self._of_job.get(job_id, 0) or (self._forgotten if self._forgotten > seen else 0)


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
        self._started_at = runtime.clock()
        self.own_writes = OwnWrites()
        self._bodies = JobBodies(jobs, runtime.clock, self._seen)
        self._pages: JoinedReads[bytes] = JoinedReads()
        self._sums: JoinedReads[Sums] = JoinedReads()
        self._queues: JoinedReads[bytes] = JoinedReads()

    def now(self) -> datetime:
        """The present moment of this service's clock."""
        return self._clock()

    async def view(self, job_id: UUID, *, with_deleted: bool = False) -> JobView:
        """The job with every answered write in it; folded from the log when the view has not got there.

        Raises `job_not_found`.
        """
        wanted = self.own_writes.of_job(job_id, self._seen() or 0)
        view = await self.jobs.one(job_id)
        if view is None or not view.exists or view.position < wanted:
            view = fold_job(job_id, await self._store.read_correlated(job_id))
        return self._found(view, with_deleted=with_deleted)

    async def view_after(self, job_id: UUID, position: int) -> JobView:
        """The job with everything up to `position` in it: a caller reads what it just wrote."""
        self.own_writes.add(job_id, position)
        return await self.view(job_id, with_deleted=True)

    def _seen(self) -> int | None:
        """How far the view is folded, if this replica folds it."""
        consumer = self._runtime.consumers.get(GATEWAY_JOBS_VIEW.name)
        return consumer.position if consumer is not None and consumer.is_active else None

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
        return (await self._bodies.of([view]))[0]

    async def page(
        self, *, status: Status | None, provider: str | None, local: bool | None, limit: int, offset: int
    ) -> bytes:
        """One page of the listed jobs, and how many there are in all: `{"jobs": [JobBody, ...], "total": 7}`."""
        await self.wait_for(self.own_writes.position, OWN_WRITES_S)
        wanted = JobFilter(status=status, provider=provider, local=local)

        async def read() -> bytes:
            page = await self.jobs.page(wanted, limit=limit, offset=offset)
            jobs = b",".join(await self._bodies.encoded(page.stamps))
            return b'{"jobs":[%b],"total":%d}' % (jobs, page.total)

        return await self._pages.of((wanted, limit, offset), read)

    async def models(self, *, limit: int, offset: int) -> bytes:
        """A page of the registry with every answered write in it: `{"models": [ModelBody, ...], "total": 7}`."""
        await self.wait_for(self.own_writes.position, OWN_WRITES_S)
        models, total = await self.jobs.models(limit=limit, offset=offset)
        return b'{"models":[%b],"total":%d}' % (",".join(models).encode(), total)

    async def model(self, name_or_id: str) -> bytes:
        """One model by its job's id, or the newest of that name. Raises `model_not_found`."""
        await self.wait_for(self.own_writes.position, OWN_WRITES_S)
        found = None
        with contextlib.suppress(ValueError):
            found = await self.jobs.model(UUID(name_or_id))
        found = found or await self.jobs.model(name_or_id)
        if found is None:
            raise Rejected("model_not_found", "there is no model of that name or id", model=name_or_id)
        return found.encode()

    async def sums(self, days: int) -> Sums:
        """The sums over jobs submitted in the last so many days, today included, with every answered write in them."""
        await self.wait_for(self.own_writes.position, OWN_WRITES_S)
        since = first_day(self._clock().date(), days)
        return await self._sums.of(since, partial(self.jobs.sums, since))

    def uptime_s(self) -> float:
        """Seconds since this gateway was started."""
        return (self._clock() - self._started_at).total_seconds()

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

    async def queue(self) -> bytes:
        """Who holds the slots and who waits, as the scheduler would go on, in JSON."""
        return await self._queues.of("now", self._read_queue)

    async def _read_queue(self) -> bytes:
        reply = await self._sender.send("scheduler", ReadQueue(), correlation_id=new_id(), actor="system:gateway")
        return msgspec.json.encode(reply.data)

    async def feed(self, *, after: int, limit: int) -> list[RecordedEvent]:
        """A page of the whole log."""
        return await self._store.read(after=after, limit=limit)

    @staticmethod
    def _found(view: JobView, *, with_deleted: bool) -> JobView:
        if not view.exists or (view.job.deleted_at is not None and not with_deleted):
            raise Rejected("job_not_found", "there is no such job", job_id=str(view.job_id))
        return view
