"""`jobs_view`, `attempts`, `job_sums`, `models`: folded by domain/views.py alone, a page of events at a time."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.gateway.domain.job_body import Status, status_of
from services.gateway.domain.job_sums import JobSum, SumKey, add_change
from services.gateway.domain.model_body import ModelBody, model_of
from services.gateway.domain.view_attempt import AttemptView
from services.gateway.domain.views import JobView, evolve_job_view
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
TIMEOUT_S = 10.0
ID_BYTES = 16
STAMP_BYTES = ID_BYTES + 8

_encoder = msgspec.json.Encoder(order="deterministic")
_view_decoder = msgspec.json.Decoder(JobView)
_attempt_decoder = msgspec.json.Decoder(AttemptView)


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list holds; None lets everything through."""

    status: Status | None = None
    provider: str | None = None
    local: bool | None = None


class Page(msgspec.Struct, frozen=True):
    """Listed jobs, newest first, by their stamps; `total` is how many all pages together hold."""

    stamps: list[bytes]
    total: int


def stamp_of(view: JobView) -> bytes:
    """Which job, and up to which event: the same stamp is the same view."""
    return view.job_id.bytes + view.position.to_bytes(STAMP_BYTES - ID_BYTES, "big")


async def project_jobs(connection: Connection, recorded: RecordedEvent) -> None:
    """Folds one event into the row of the job it is correlated with."""
    await project_page(connection, [recorded])


async def project_page(connection: Connection, page: Sequence[RecordedEvent]) -> None:
    """Folds events, in log order, into their jobs' rows: each row is read once and, if it changed, written once."""
    ids = list(dict.fromkeys(recorded.correlation_id for recorded in page))
    stored = [_view_decoder.decode(row["view"]) for row in await connection.fetch(QUERIES.views_for_update, ids)]
    before = {job_id: JobView(job_id=job_id) for job_id in ids} | {view.job_id: view for view in stored}
    views = dict(before)
    attempts: set[tuple[UUID, str]] = set()
    for recorded in page:
        known = views[recorded.correlation_id]
        view = views[recorded.correlation_id] = evolve_job_view(known, recorded, catalogue.decode(recorded))
        if view is not known and recorded.category == "attempt":
            attempts.add((view.job_id, recorded.stream.partition("-")[2]))
    changed = [view for job_id, view in views.items() if view is not before[job_id]]
    if not changed:
        return
    await connection.execute(QUERIES.put_views, *_columns(map(_view_row, changed)))
    if attempts:
        runs = [views[job_id].attempts[attempt_id] for job_id, attempt_id in sorted(attempts)]
        await connection.execute(QUERIES.put_attempts, *_columns(map(_attempt_row, runs)))
    await _move_sums(connection, before, changed)
    await _register_models(connection, before, changed)


async def _move_sums(connection: Connection, before: Mapping[UUID, JobView], changed: Iterable[JobView]) -> None:
    sums: dict[SumKey, JobSum] = {}
    for view in changed:
        add_change(sums, before[view.job_id], view)
    moved = [key for key, change in sums.items() if change != JobSum()]
    if not moved:
        return
    rows = [(*msgspec.structs.astuple(key), *msgspec.structs.astuple(sums[key])) for key in moved]
    await connection.execute(QUERIES.add_to_sums, *_columns(rows))
    # A refold cuts its pages elsewhere and never sees some sums that come and go: so none stays when nothing is in it.
    if emptied := [msgspec.structs.astuple(key) for key in moved if sums[key].jobs < 0]:
        await connection.execute(QUERIES.drop_empty_sums, *_columns(emptied))


async def _register_models(connection: Connection, before: Mapping[UUID, JobView], changed: Sequence[JobView]) -> None:
    models = [model for view in changed if (model := model_of(view)) is not None]
    if models:
        await connection.execute(QUERIES.put_models, *_columns(map(_model_row, models)))
    present = {model.model_id for model in models}
    if gone := [v.job_id for v in changed if str(v.job_id) not in present and model_of(before[v.job_id]) is not None]:
        await connection.execute(QUERIES.drop_models, gone)


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One array for each parameter of a query that unnests them."""
    return list(zip(*rows, strict=True))


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


def _model_row(model: ModelBody) -> tuple[Any, ...]:
    return (UUID(model.model_id), model.name, model.created_at, _encoder.encode(model).decode())


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

    async def some(self, job_ids: Sequence[UUID]) -> list[JobView]:
        """Those of these jobs that the projection knows, in no order."""
        return [_view_decoder.decode(row["view"]) for row in await self._rows(QUERIES.views_of, job_ids)]

    async def page(self, wanted: JobFilter, *, limit: int, offset: int) -> Page:
        """Some of the listed jobs, as of one moment."""
        match wanted:
            case JobFilter(status=None, provider=None, local=None):
                row = await self._row(QUERIES.list_all, limit, offset)
            case JobFilter(status=None):
                row = await self._row(QUERIES.list_of_provider, limit, offset, wanted.provider, wanted.local)
            case JobFilter():
                filters = (wanted.status, wanted.provider, wanted.local)
                row = await self._row(QUERIES.list_of_status, limit, offset, *filters)
        listed, total = row
        return Page([listed[at : at + STAMP_BYTES] for at in range(0, len(listed), STAMP_BYTES)], total)

    async def models(self, *, limit: int, offset: int) -> tuple[list[str], int]:
        """A page of encoded models, newest first, and how many there are in all."""
        rows = await self._rows(QUERIES.list_models, limit, offset)
        return [row["body"] for row in rows], await self._value(QUERIES.count_models)

    async def model(self, name_or_job: str | UUID) -> str | None:
        """The encoded model of a job, or the newest one of a name."""
        query = QUERIES.model_of_job if isinstance(name_or_job, UUID) else QUERIES.model_named
        return await self._value(query, name_or_job)

    async def sums(self, since: date) -> dict[SumKey, JobSum]:
        """The sums over jobs submitted on a day or later."""
        rows = [tuple(row) for row in await self._rows(QUERIES.read_sums, since)]
        return {SumKey(*row[:4]): JobSum(*row[4:]) for row in rows}

    async def active(self) -> int:
        """How many jobs have not ended."""
        return await self._value(QUERIES.count_active)

    async def waiting(self) -> bytes:
        """The ids of the waiting jobs in their order, 16 bytes each."""
        return await self._value(QUERIES.waiting_order)

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

    async def _row(self, query: str, *arguments: object) -> Any:
        with unavailable_on_outage("read"):
            return await self._pool.fetchrow(query, *arguments, timeout=TIMEOUT_S)

    async def _value(self, query: str, *arguments: object) -> Any:
        with unavailable_on_outage("read"):
            return await self._pool.fetchval(query, *arguments, timeout=TIMEOUT_S)
