"""Which attempt stands behind a trainer's token.

The log is asked whenever the view has not got there yet, so that no trainer is turned away because of a projection.
"""

from uuid import UUID

from services.gateway.domain.tokens import holder, require_live, token_digest
from services.gateway.domain.view_attempt import AttemptView
from services.gateway.domain.views import JobView, fold_job
from services.gateway.projections.jobs import JobsView
from services.gateway.reads import JobReads
from shared.eventstore.api import EventStore
from shared.problems import Rejected, Unavailable

CATCH_UP_S = 2.0


class AttemptAccess:
    """Checks tokens against the digests in the log. Raises `missing_token`, `invalid_token`, `attempt_superseded`."""

    def __init__(self, store: EventStore, jobs: JobsView, reads: JobReads) -> None:
        self._store = store
        self._jobs = jobs
        self._reads = reads

    async def of_attempt(self, attempt_id: UUID, token: str | None) -> AttemptView:
        """The attempt of that id, if the token is its own; ended or not."""
        given = require_token(token)
        known = await self._from_stream(attempt_id)
        return holder([known] if known else [], given)

    async def current(self, attempt: AttemptView) -> AttemptView:
        """The same attempt as its stream tells it now."""
        return await self._from_stream(attempt.attempt_id) or attempt

    async def newest_number(self, job_id: UUID) -> int:
        """The number of the job's newest attempt, 0 if none is known."""
        return max((attempt.number for attempt in await self._jobs.attempts_of(job_id)), default=0)

    async def require_live(self, attempt: AttemptView) -> AttemptView:
        """Refuses an attempt that is over or that a newer one replaced."""
        return require_live(attempt, await self.newest_number(attempt.job_id))

    async def of_job(self, job_id: UUID, token: str | None) -> AttemptView:
        """The live attempt of that job whose token this is."""
        given = require_token(token)
        attempts = await self._jobs.attempts_of(job_id)
        try:
            attempt = holder(attempts, given)
        except Rejected:
            attempts = list(fold_job(job_id, await self._store.read_correlated(job_id)).attempts.values())
            attempt = holder(attempts, given)
        return await self._live_now(attempt, given, max(known.number for known in attempts))

    async def job_of_token(self, token: str | None) -> JobView:
        """The job whose live attempt this token belongs to."""
        given = require_token(token)
        digest = token_digest(given)
        attempts = await self._jobs.attempts_by_token(digest)
        if not attempts:
            # A token cannot be looked up in the log by itself: let the view catch up with what is there now.
            if not await self._reads.caught_up(CATCH_UP_S):
                raise Unavailable("the view of attempts is behind the log")
            attempts = await self._jobs.attempts_by_token(digest)
        found = holder(attempts, given)
        attempt = await self._live_now(found, given, await self.newest_number(found.job_id))
        return await self._reads.view(attempt.job_id, with_deleted=True)

    async def _live_now(self, found: AttemptView, given: str, newest_number: int) -> AttemptView:
        """The attempt as its stream tells it now: the view that it was found in may not know yet that it ended.

        A newer attempt is dispatched only after this one's end, so its own stream is enough.
        """
        return require_live(holder([await self.current(found)], given), newest_number)

    async def _from_stream(self, attempt_id: UUID) -> AttemptView | None:
        """The attempt from its own stream: never behind, and a handful of events long."""
        history = await self._store.read_stream(f"attempt-{attempt_id}")
        return fold_job(history[0].correlation_id, history).attempts[str(attempt_id)] if history else None


def require_token(token: str | None) -> str:
    """The token, or `missing_token`."""
    if not token:
        raise Rejected("missing_token", "send the attempt's token as Authorization: Bearer <token>")
    return token
