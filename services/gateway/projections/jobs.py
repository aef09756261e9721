"""`jobs_view` and `attempts`: one row per job and per attempt, folded by domain/views.py alone, and their queries."""

from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.gateway.domain.job_body import Status, status_of
from services.gateway.domain.view_attempt import AttemptView
from services.gateway.domain.views import JobView, evolve_job_view
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.outages import unavailable_on_outage
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
TIMEOUT_S = 10.0

_encoder = msgspec.json.Encoder(order="deterministic")
_view_decoder = msgspec.json.Decoder(JobView)
_attempt_decoder = msgspec.json.Decoder(AttemptView)


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list holds; None lets everything through."""

    status: Status | None = None
    provider: str | None = None
    local: bool | None = None


async def project_jobs(connection: asyncpg.Connection | PoolConnectionProxy, recorded: RecordedEvent) -> None:
    """Folds one event into the row of the job it is correlated with; an event that says nothing new writes nothing."""
    event = catalogue.decode(recorded)
    stored = await connection.fetchval(QUERIES.view_for_update, recorded.correlation_id)
    before = _view_decoder.decode(stored) if stored else JobView(job_id=recorded.correlation_id)
    view = evolve_job_view(before, recorded, event)
    if view is before:
        return
    await connection.execute(QUERIES.put_view, *_view_row(view))
    if recorded.category == "attempt":
        attempt = view.attempts[recorded.stream.partition("-")[2]]
        await connection.execute(QUERIES.put_attempt, *_attempt_row(attempt))


def _view_row(view: JobView) -> tuple[Any, ...]:
    facts = view.job
    return (
        view.job_id,
        facts.user_id,
        facts.provider,
        status_of(view),
        facts.phase,
        facts.priority,
        facts.submitted_at,
        facts.queued_at,
        view.visible,
        view.position,
        _encoder.encode(view).decode(),
    )


def _attempt_row(attempt: AttemptView) -> tuple[Any, ...]:
    return (
        attempt.attempt_id,
        attempt.job_id,
        attempt.token_sha256,
        attempt.state,
        _encoder.encode(attempt).decode(),
    )


class JobsView:
    """Reads the rows. Raises Unavailable when Postgres is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def one(self, job_id: UUID) -> JobView | None:
        """The job as far as the projection has read."""
        stored = await self._value(QUERIES.view_of, job_id)
        return _view_decoder.decode(stored) if stored else None

    async def page(self, wanted: JobFilter, *, limit: int, offset: int) -> list[JobView]:
        """Listed jobs, newest first."""
        filters = (wanted.status, wanted.provider, wanted.local)
        rows = await self._rows(QUERIES.list_views, *filters, limit, offset)
        return [_view_decoder.decode(row["view"]) for row in rows]

    async def total(self, wanted: JobFilter) -> int:
        """How many jobs all pages together hold."""
        return await self._value(QUERIES.count_views, wanted.status, wanted.provider, wanted.local)

    async def active(self) -> int:
        """How many jobs have not ended."""
        return await self._value(QUERIES.count_active)

    async def places(self, job_ids: list[UUID]) -> dict[UUID, int]:
        """Where waiting jobs stand, counted from 1; others are absent."""
        rows = await self._rows(QUERIES.waiting_order, job_ids)
        return {UUID(int=row["job_id"].int): row["place"] for row in rows}

    async def attempts_of(self, job_id: UUID) -> list[AttemptView]:
        """Every attempt of one job that the projection knows."""
        return [_attempt_decoder.decode(row["view"]) for row in await self._rows(QUERIES.attempts_of_job, job_id)]

    async def attempts_by_token(self, token_sha256: str) -> list[AttemptView]:
        """The attempt whose token has this digest, if the projection knows it."""
        rows = await self._rows(QUERIES.attempts_by_token, token_sha256)
        return [_attempt_decoder.decode(row["view"]) for row in rows]

    async def alive(self) -> None:
        """Returns when Postgres answers."""
        await self._value(QUERIES.alive)

    async def _rows(self, query: str, *arguments: object) -> list[Any]:
        with unavailable_on_outage("read"):
            return await self._pool.fetch(query, *arguments, timeout=TIMEOUT_S)

    async def _value(self, query: str, *arguments: object) -> Any:
        with unavailable_on_outage("read"):
            return await self._pool.fetchval(query, *arguments, timeout=TIMEOUT_S)
