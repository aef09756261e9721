"""Whose runs are on a provider now: who takes a key away would leave their machines to nobody."""

from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.attempt_stream import ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_states import Absent, Forestalled, run_of
from services.provider_bridge.queries import QUERIES
from shared.decider import fold
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage

MAX_LOOKED_AT = 1000
_TIMEOUT_S = 5.0


class LiveRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has not ended, or whose machine is still there."""

    job_id: UUID
    user_id: str | None


class LiveRuns:
    """Reads them: which there are from the read model, perhaps a moment behind; whose they are from the log."""

    def __init__(self, pool: asyncpg.Pool, store: EventStore) -> None:
        self._pool = pool
        self._store = store

    async def of(self, provider: str) -> list[LiveRun]:
        """The newest MAX_LOOKED_AT. Raises Unavailable when Postgres is away."""
        with unavailable_on_outage("live runs"):
            rows = await self._pool.fetch(QUERIES.live_attempts, provider, MAX_LOOKED_AT, timeout=_TIMEOUT_S)
        found: list[LiveRun] = []
        for row in rows:
            state = fold(ATTEMPT, await self._store.read_stream(attempt_stream(row["attempt_id"])))
            if not isinstance(state, Absent | Forestalled):
                request = run_of(state).request
                found.append(LiveRun(job_id=request.job_id, user_id=request.user_id))
        return found
