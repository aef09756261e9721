"""Time-bounded ownership of attempts, by the clock of Postgres. A lease that has expired cannot append.

Every append under a lease locks the lease row first, in the same transaction: taking the attempt over waits for it,
or makes it fail. See docs/decisions/0006.
"""

from uuid import UUID

import asyncpg

from services.provider_bridge.attempt_stream import ACTOR, ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import Cancel, FencedCommand, IntendStart, TakeLease
from services.provider_bridge.domain.attempt_states import (
    Absent,
    AttemptState,
    Ended,
    Ending,
    Forestalled,
    Run,
    run_of,
)
from services.provider_bridge.queries import QUERIES
from shared.clock import Clock
from shared.contracts import catalogue
from shared.contracts.attempt import CancelAttempt
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import Event, JobCancelled, JobCancelRequested, JobCompleted, JobFailed
from shared.decider import MAX_DECISIONS, fold
from shared.eventstore.api import Append, VersionConflict
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.eventstore.transactional import TransactionalStore
from shared.problems import Unavailable

_ACQUIRE_TIMEOUT_S = 10.0
_JOB_IS_OVER = [catalogue.event_type(kind) for kind in (JobCancelRequested, JobCancelled, JobCompleted, JobFailed)]


class LeaseLost(Exception):  # noqa: N818 - an outcome of a race, not an error
    """The attempt is not ours any more: nothing was written, and nothing may be done to its run."""


class JobIsOver(Exception):  # noqa: N818 - an outcome of a race, not an error
    """The job was cancelled or has ended: no start was intended, and none may be."""


class Leases:
    """The leases of one bridge process. `owner` is its name while it lives; its successor may have the same one."""

    def __init__(
        self, pool: asyncpg.Pool, store: TransactionalStore, clock: Clock, *, owner: str, lease_s: float
    ) -> None:
        self.owner = owner
        self._pool = pool
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self._held: dict[UUID, int] = {}

    @property
    def held(self) -> frozenset[UUID]:
        """Attempts that this process took and has not lost or dropped, as far as it knows."""
        return frozenset(self._held)

    async def load(self, attempt_id: UUID) -> AttemptState:
        """The attempt as the log has it now."""
        return fold(ATTEMPT, await self._store.read_stream(attempt_stream(attempt_id)))

    async def hold(self, attempt_id: UUID, state: AttemptState, site: str | None, *, above: int = 0) -> int | None:
        """The epoch under which the attempt is ours, higher than `above`; None if it is another's, or has ended."""
        held = self._held.get(attempt_id)
        known = not isinstance(state, Absent | Forestalled)
        if held is not None and held > above and known and run_of(state).epoch == held:
            return held
        return await self._take(attempt_id, site)

    async def _take(self, attempt_id: UUID, site: str | None) -> int | None:
        for _ in range(MAX_DECISIONS):
            history = await self._store.read_stream(attempt_stream(attempt_id))
            state = fold(ATTEMPT, history)
            if isinstance(state, Absent | Forestalled):
                return None
            try:
                epoch = await self._take_once(attempt_id, state, history, site)
            except VersionConflict:
                continue
            if epoch is None:
                self._held.pop(attempt_id, None)
            else:
                self._held[attempt_id] = epoch
            return epoch
        raise Unavailable(f"attempt {attempt_id} kept changing while its lease was taken")

    async def _take_once(
        self, attempt_id: UUID, state: Run | Ending | Ended, history: list[RecordedEvent], site: str | None
    ) -> int | None:
        past = run_of(state).epoch
        with unavailable_on_outage("take lease"):
            async with self._pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                epoch = await connection.fetchval(QUERIES.take_lease, attempt_id, past, self.owner, site, self._lease_s)
                if epoch is None:
                    return None
                events = ATTEMPT.decide(state, TakeLease(epoch=epoch, at=self._clock(), owner=self.owner))
                await self._append(connection, attempt_id, history, list(events))
        return epoch

    async def append(self, attempt_id: UUID, command: FencedCommand) -> AttemptState:
        """Decides and appends while the lease is ours; gives the state after it.

        Raises:
            LeaseLost: it has expired or another has it; nothing was written.
            JobIsOver: a start was to be intended for a job that wants none; nothing was written.
            Rejected: the rule said no.
        """
        return await self._append_decided(attempt_id, command.epoch, command)

    async def cancel(self, attempt_id: UUID, epoch: int, reason: str) -> AttemptState:
        """The same for a cancel that the bridge itself finds due."""
        asked = CancelAttempt(attempt_id=attempt_id, reason=reason)
        return await self._append_decided(attempt_id, epoch, Cancel(command=asked, at=self._clock()))

    async def _append_decided(self, attempt_id: UUID, epoch: int, command: FencedCommand | Cancel) -> AttemptState:
        for _ in range(MAX_DECISIONS):
            history = await self._store.read_stream(attempt_stream(attempt_id))
            state = fold(ATTEMPT, history)
            events = list(ATTEMPT.decide(state, command))
            if not events:
                return state
            try:
                await self._append_locked(
                    attempt_id, epoch, history, events, unless_over=isinstance(command, IntendStart)
                )
            except VersionConflict:
                continue
            for event in events:
                state = ATTEMPT.evolve(state, event)
            return state
        raise Unavailable(f"attempt {attempt_id} kept changing; it is tried again")

    async def _append_locked(
        self, attempt_id: UUID, epoch: int, history: list[RecordedEvent], events: list[Event], *, unless_over: bool
    ) -> None:
        with unavailable_on_outage("append under lease"):
            async with self._pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                if not await connection.fetchval(QUERIES.lock_lease, attempt_id, epoch, self.owner):
                    raise LeaseLost(attempt_id, epoch)
                await self._append(connection, attempt_id, history, events)
                # Asked after the append, which keeps every other writer out of the log until this transaction ends:
                # what the job's stream does not hold now comes after our event, or our event does not come at all.
                job = f"job-{history[0].correlation_id}"
                if unless_over and await connection.fetchval(QUERIES.holds_event_of, job, _JOB_IS_OVER):
                    raise JobIsOver(attempt_id)

    async def _append(
        self, connection: Connection, attempt_id: UUID, history: list[RecordedEvent], events: list[Event]
    ) -> None:
        append = Append(
            stream=attempt_stream(attempt_id),
            expected_version=history[-1].stream_version,
            events=events,
            meta=EventMetadata(actor=ACTOR, causation_id=history[-1].event_id),
            correlation_id=history[0].correlation_id,
        )
        [outcome] = await self._store.append_in(connection, [append])
        if isinstance(outcome, VersionConflict):
            raise outcome

    async def check(self, attempt_id: UUID, epoch: int, *, for_s: float) -> None:
        """Returns if the lease is ours for `for_s` more seconds, else raises LeaseLost: asked right before an act."""
        with unavailable_on_outage("check lease"):
            held = await self._pool.fetchval(QUERIES.holds_lease, attempt_id, epoch, self.owner, for_s)
        if not held:
            raise LeaseLost(attempt_id, epoch)

    async def renew(self) -> None:
        """Prolongs what is held; forgets what was lost."""
        held = dict(self._held)
        if not held:
            return
        with unavailable_on_outage("renew leases"):
            rows = await self._pool.fetch(
                QUERIES.renew_leases, list(held), list(held.values()), self.owner, self._lease_s
            )
        kept = {row["attempt_id"] for row in rows}
        for attempt_id, epoch in held.items():
            if attempt_id not in kept and self._held.get(attempt_id) == epoch:
                del self._held[attempt_id]

    async def release(self) -> None:
        """Lets everything go at once, so that another bridge need not wait: this process does nothing more."""
        held, self._held = self._held, {}
        with unavailable_on_outage("release leases"):
            await self._pool.execute(QUERIES.release_leases, list(held), list(held.values()), self.owner)

    def forget(self, attempt_id: UUID) -> None:
        """The next hold() takes a new epoch instead of trusting the old one."""
        self._held.pop(attempt_id, None)

    async def drop(self, attempt_id: UUID) -> None:
        """The attempt has ended: nobody owns it."""
        self._held.pop(attempt_id, None)
        with unavailable_on_outage("drop lease"):
            await self._pool.execute(QUERIES.drop_lease, attempt_id)

    async def drop_ended(self) -> None:
        """The same for every ended attempt whose owner did not live to do it."""
        with unavailable_on_outage("drop ended leases"):
            await self._pool.execute(QUERIES.drop_ended_leases)

    async def due(self, sites: list[str], limit: int) -> list[UUID]:
        """Attempts that have not ended and that this bridge owns or may take now; perhaps a moment behind the log."""
        with unavailable_on_outage("due attempts"):
            rows = await self._pool.fetch(QUERIES.due_attempts, self.owner, sites, limit)
        return [row["attempt_id"] for row in rows]
