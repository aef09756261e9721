"""Slots are given out in one Postgres transaction, so any number of replicas never exceeds the limits (ADR 0004).

The transaction locks the queue's checkpoint row, folds the job events that were committed since, asks the queue
policy, and appends what it says. Whoever gets the lock next reads those events first: two dispatchers never count
the same slot as free.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from services.scheduler.domain import queue_policy
from services.scheduler.domain.job_commands import Dispatch, ExplainWait
from services.scheduler.domain.queue_policy import MAX_EXPLANATIONS, Admission, Limits, queue_order
from services.scheduler.handlers import ACTOR, JOB, job_stream
from services.scheduler.projections import queue
from services.scheduler.projections.queue import Queue
from shared.clock import Clock
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata, RecordedEvent
from shared.contracts.job import DecisionBasis, ReadQueue
from shared.contracts.subjects import SCHEDULER_QUEUE
from shared.decider import fold
from shared.eventstore.api import Append, Appended
from shared.eventstore.group_commit import Connection
from shared.eventstore.transactional import TransactionalStore
from shared.ids import new_id
from shared.problems import Rejected

PAGE = 500
ACQUIRE_TIMEOUT_S = 10.0


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one round did. `due_at`: when the next delayed job may run; `unfinished`: run another round at once."""

    dispatched: int = 0
    unfinished: bool = False
    due_at: datetime | None = None


class _Folded(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where the queue's rows are folded, and whether anybody came into the line or gave a slot back."""

    position: int
    is_news: bool


class _Overtaken(Exception):  # noqa: N818 - a race that was lost, not an error
    """A job that was to get a slot moved while the round was decided; nothing of the round may stay."""


class Dispatcher:
    """Gives slots to waiting jobs and tells the others why they wait."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        store: TransactionalStore,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._pool = pool
        self._store = store
        self._clock = clock
        self._limits = limits
        # Whoever holds the queue's lock reads the log on a second connection: one holder or waiter per process, or
        # the waiters could have taken every connection of the pool.
        self._turn = asyncio.Lock()

    async def run_round(self) -> Round:
        """Gives out every slot that is free now. Exact with any number of dispatchers at the same time."""
        return await self._round(only_on_news=False) or Round()

    async def run_round_if_changed(self) -> Round | None:
        """The same when somebody came into the line or gave a slot back since any round; else None, and cheap."""
        return await self._round(only_on_news=True)

    async def read_queue(self, _command: ReadQueue, _envelope: CommandEnvelope) -> CommandReply:
        """Who runs and who waits, as of now: the answer to `ReadQueue`."""
        async with self._connection() as connection:
            reading = connection.transaction()
            await reading.start()
            try:
                await self._fold(connection)
                seen = await queue.load(connection)
            finally:
                await reading.rollback()  # what was folded here is for the next round to find
        admission = self._admit(seen, self._clock())
        limits = {"global": self._limits.in_all, "per_user": self._limits.per_user}
        return CommandReply(data={"running": _running(seen), "waiting": _waiting(admission), "limits": limits})

    async def _round(self, *, only_on_news: bool) -> Round | None:
        """One round, or none of it: what it says of one job holds only if the others got what it gave them."""
        try:
            async with self._connection() as connection, connection.transaction():
                folded = await self._fold(connection)
                if only_on_news and not folded.is_news:
                    return None
                return await self._give_out(connection, folded.position)
        except _Overtaken:
            return Round(unfinished=True)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        async with self._turn, self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            yield connection

    async def _fold(self, connection: Connection) -> _Folded:
        """Locks the queue and folds what was committed since."""
        position = await queue.lock(connection)
        is_news = False
        while page := await self._store.read(after=position, categories=SCHEDULER_QUEUE.categories, limit=PAGE):
            is_news = await queue.fold(connection, page) or is_news
            position = page[-1].global_position
            await queue.raise_checkpoint(connection, position)
        return _Folded(position=position, is_news=is_news)

    async def _give_out(self, connection: Connection, seen_position: int) -> Round:
        now = self._clock()
        seen = await queue.load_round(connection, self._limits, now, MAX_EXPLANATIONS + 1)
        admission = self._admit(seen, now)
        unexplained = queue_policy.unexplained(
            admission, {job_id: row.wait_reason for job_id, row in seen.rows.items()}
        )
        basis = DecisionBasis(
            seen_position=seen_position,
            decided_at=now,
            slots_in_all=self._limits.in_all,
            slots_per_user=self._limits.per_user,
        )
        dispatches, explanations = await self._decide(admission, unexplained[:MAX_EXPLANATIONS], basis)
        outcomes = await self._store.append_in(connection, [*dispatches, *explanations])
        written = [isinstance(outcome, Appended) for outcome in outcomes]
        if not all(written[: len(dispatches)]):
            raise _Overtaken
        return Round(
            dispatched=len(dispatches),
            unfinished=not all(written) or len(unexplained) > MAX_EXPLANATIONS,
            due_at=await queue.next_due(connection, now),
        )

    def _admit(self, seen: Queue, now: datetime) -> Admission:
        return queue_policy.admit(seen.waiting, seen.running, self._limits, now)

    async def _decide(
        self, admission: Admission, unexplained: list[queue_policy.Wait], basis: DecisionBasis
    ) -> tuple[list[Append], list[Append]]:
        """What the job decider makes of the admission; a wait of a job that moved meanwhile is left to the next round.

        Raises _Overtaken when a job that was to get a slot moved.
        """
        places = [
            await self._append_for(placed.job.job_id, _dispatch(placed, basis)) for placed in admission.dispatches
        ]
        waits = [await self._append_for(wait.job.job_id, _explain(wait, basis)) for wait in unexplained]
        return [one for one in places if one is not None], [one for one in waits if one is not None]

    async def _append_for(self, job_id: UUID, command: Dispatch | ExplainWait) -> Append | None:
        history = await self._store.read_stream(job_stream(job_id))
        if isinstance(command, Dispatch) and _moved_since(history, command.basis):
            raise _Overtaken
        try:
            events = JOB.decide(fold(JOB, history), command)
        except Rejected:
            return None
        if not events:
            return None
        return Append(
            stream=job_stream(job_id),
            expected_version=history[-1].stream_version,
            events=events,
            meta=EventMetadata(actor=ACTOR),
            correlation_id=job_id,
        )


def _moved_since(history: Sequence[RecordedEvent], basis: DecisionBasis | None) -> bool:
    return basis is not None and bool(history) and history[-1].global_position > basis.seen_position


def _dispatch(placed: queue_policy.Placement, basis: DecisionBasis) -> Dispatch:
    return Dispatch(attempt_id=new_id(), reason=placed.reason, at=basis.decided_at, basis=basis)


def _explain(wait: queue_policy.Wait, basis: DecisionBasis) -> ExplainWait:
    return ExplainWait(reason=wait.reason, detail=wait.detail, limit=wait.limit, holders=wait.holders, basis=basis)


def _running(seen: Queue) -> list[dict[str, object]]:
    held = sorted((row for row in seen.rows.values() if row.phase == "holding"), key=lambda row: row.position)
    return [
        {
            "job_id": str(row.job_id),
            "user_id": row.user_id,
            "provider": row.provider,
            "attempt_number": row.attempt_number,
        }
        for row in held
    ]


def _waiting(admission: Admission) -> list[dict[str, object]]:
    reasons = {wait.job.job_id: (wait.reason, wait.detail) for wait in admission.waits}
    reasons |= {placed.job.job_id: ("dispatching", placed.reason) for placed in admission.dispatches}
    jobs = [placed.job for placed in admission.dispatches] + [wait.job for wait in admission.waits]
    return [
        {
            "job_id": str(job.job_id),
            "user_id": job.user_id,
            "priority": job.priority,
            "position": place,
            "reason": reasons[job.job_id][0],
            "detail": reasons[job.job_id][1],
            "queued_at": job.queued_at.isoformat(),
            "not_before": job.not_before and job.not_before.isoformat(),
        }
        for place, job in enumerate(sorted(jobs, key=queue_order), start=1)
    ]
