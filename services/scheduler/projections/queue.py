"""The jobs that have not ended, one row each: what the dispatcher shares slots out from.

`domain/queue_row.py` is the whole meaning; this moves rows to and from `scheduler.jobs`. An ended job has no row.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import structlog

from services.scheduler.domain.queue_policy import Limits, RunningJob, WaitingJob
from services.scheduler.domain.queue_row import QueueRow, evolve_row, running_job, waiting_job
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import SCHEDULER_QUEUE
from shared.eventstore.group_commit import Connection
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
QUERY_TIMEOUT_S = 10.0

log = structlog.stdlib.get_logger()


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits and who holds a slot, as of one transaction."""

    rows: dict[UUID, QueueRow]

    @property
    def waiting(self) -> Sequence[WaitingJob]:
        """The queued jobs as the policy takes them, in no order."""
        return [job for row in self.rows.values() if (job := waiting_job(row)) is not None]

    @property
    def running(self) -> Sequence[RunningJob]:
        """The jobs that hold a slot."""
        return [job for row in self.rows.values() if (job := running_job(row)) is not None]


async def lock(connection: Connection) -> int:
    """Makes this transaction the only one that dispatches; answers up to which position the rows are folded."""
    position = await connection.fetchval(QUERIES.lock_queue, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
    if position is None:
        await connection.execute(QUERIES.ensure_checkpoint, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
        position = await connection.fetchval(QUERIES.lock_queue, SCHEDULER_QUEUE.name, timeout=QUERY_TIMEOUT_S)
    return position


async def raise_checkpoint(connection: Connection, position: int) -> None:
    """The rows are folded up to here."""
    await connection.execute(QUERIES.raise_checkpoint, SCHEDULER_QUEUE.name, position, timeout=QUERY_TIMEOUT_S)


async def project(connection: Connection, recorded: RecordedEvent) -> None:
    """Folds one event into its job's row."""
    await fold(connection, [recorded])


async def fold(connection: Connection, page: Sequence[RecordedEvent]) -> bool:
    """Folds events, in log order, into their jobs' rows; each row is read once and, if it changed, written once.

    Answers whether anybody came into the line or gave a slot back: without that, slots are as they were shared out.
    """
    ids = list(dict.fromkeys(_job_id(recorded) for recorded in page if recorded.category == "job"))
    stored = await connection.fetch(QUERIES.read_jobs, ids, timeout=QUERY_TIMEOUT_S)
    before = {record["job_id"]: _row(record) for record in stored}
    rows: dict[UUID, QueueRow | None] = {job_id: before.get(job_id) for job_id in ids}
    for recorded in page:
        if recorded.category == "job":
            job_id = _job_id(recorded)
            rows[job_id] = _after(rows[job_id], recorded, job_id)
    changed = [row for job_id, row in rows.items() if row is not None and row != before.get(job_id)]
    gone = [job_id for job_id, row in rows.items() if row is None and job_id in before]
    if changed:
        values = zip(*(msgspec.structs.astuple(row) for row in changed), strict=True)
        await connection.execute(QUERIES.save_jobs, *values, timeout=QUERY_TIMEOUT_S)
    if gone:
        await connection.execute(QUERIES.drop_jobs, gone, timeout=QUERY_TIMEOUT_S)
    return any(_matters(before.get(job_id), row) for job_id, row in rows.items())


def _after(row: QueueRow | None, recorded: RecordedEvent, job_id: UUID) -> QueueRow | None:
    """The row after one more event. A job with one that cannot be read leaves the line and holds up no other."""
    try:
        event = catalogue.decode(recorded)
    except msgspec.DecodeError as error:
        log.error(  # noqa: TRY400 - the reason says it all; who handles events one by one parks it
            "scheduler.event.unreadable",
            job_id=str(job_id),
            event_type=recorded.type,
            position=recorded.global_position,
            reason=str(error),
        )
        return row if row is not None and row.phase in {"holding", "completing"} else None
    return row if event is None else evolve_row(row, event, job_id, recorded.global_position)


def _matters(before: QueueRow | None, after: QueueRow | None) -> bool:
    held = before is not None and before.phase == "holding"
    holds = after is not None and after.phase == "holding"
    came = after is not None and after.phase == "queued" and (before is None or before.position != after.position)
    return came or (held and not holds)


def _job_id(recorded: RecordedEvent) -> UUID:
    return UUID(recorded.stream.partition("-")[2])


def _row(record: asyncpg.Record) -> QueueRow:
    return msgspec.convert(dict(record), QueueRow)


async def load(connection: Connection) -> Queue:
    """Every job that waits or holds a slot."""
    stored = await connection.fetch(QUERIES.read_queue, timeout=QUERY_TIMEOUT_S)
    rows = [_row(record) for record in stored]
    return Queue(rows={row.job_id: row for row in rows})


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots are free: in all, of the users who hold some or have a limit of their own, and of any other."""

    in_all: int
    of_users: Mapping[str, int]
    of_others: int

    @classmethod
    def left(cls, limits: Limits, holders: Iterable[str]) -> "Places":
        """What the limits leave when these users (one for each slot) hold slots."""
        held = Counter(holders)
        users = sorted({*held, *limits.of_users})
        free = {user: max(0, limits.of(user) - held[user]) for user in users}
        return cls(in_all=max(0, limits.in_all - held.total()), of_users=free, of_others=limits.per_user)


async def load_round(connection: Connection, limits: Limits, now: datetime, explanations: int) -> Queue:
    """What a round needs of the queue: who holds a slot, who gets one now, and who must be told why not.

    `admit` gives the same slots to the same jobs, and the same reasons, as if it were given everybody who waits: nobody
    is left out who comes before one that gets a slot, and reasons hang on the slots alone that are taken in the end.
    """
    rows = [_row(record) for record in await connection.fetch(QUERIES.read_holding, timeout=QUERY_TIMEOUT_S)]
    places = Places.left(limits, (row.user_id for row in rows))
    if places.in_all:
        following = [_row(record) for record in await _fetch(connection, QUERIES.read_next, now, places.in_all, places)]
        rows += following
        places = Places.left(limits, (row.user_id for row in rows))
    chosen = [row.job_id for row in rows]
    told = await _fetch(connection, QUERIES.read_mistold, now, explanations, places, chosen)
    rows += [_row(record) for record in told]
    return Queue(rows={row.job_id: row for row in rows})


async def next_due(connection: Connection, now: datetime) -> datetime | None:
    """When the first delayed job may run; None when none is delayed."""
    return await connection.fetchval(QUERIES.next_due, now, timeout=QUERY_TIMEOUT_S)


async def _fetch(
    connection: Connection, query: str, now: datetime, limit: int, places: Places, *more: object
) -> list[asyncpg.Record]:
    users = (list(places.of_users), list(places.of_users.values()), places.of_others)
    return await connection.fetch(query, now, limit, *users, *more, timeout=QUERY_TIMEOUT_S)
