"""Read models that can be dropped and folded again from the log, and must come out byte-equal."""

import hashlib
from collections.abc import Sequence

import asyncpg
import msgspec
import structlog

from shared.contracts.subjects import Durable
from shared.eventstore.api import EventStore
from shared.messaging.handling import Project, ProjectPage
from shared.messaging.inbox import QUERIES

PAGE = 1000
REBUILD_STATEMENT_S = 600.0

log = structlog.stdlib.get_logger()


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """The tables that `project` fills from a durable's events, and nobody else writes.

    Each table has a primary key; identity columns and clocks would make rows that no refold can repeat.
    """

    name: str
    tables: tuple[str, ...]
    """Parents before children, where foreign keys connect them."""
    durable: Durable
    project: Project
    project_page: ProjectPage | None = None
    """Does the same as `project` with each event of a page, in fewer statements."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild found. The refolded rows stay, equal or not: the log is the truth."""

    name: str
    rows: int
    before_sha256: str
    after_sha256: str
    equal: bool


async def rebuild(pool: asyncpg.Pool, store: EventStore, projections: Sequence[Projection]) -> list[Rebuilt]:
    """Refolds each projection up to its durable's checkpoint, in one transaction each.

    Meanwhile the durable's consumer waits at the checkpoint's row lock, in whichever replica it is, and readers see
    the old rows. Events that are parked are left out, as they were left out before.
    """
    return [await _rebuild(pool, store, projection) for projection in projections]


async def _rebuild(pool: asyncpg.Pool, store: EventStore, projection: Projection) -> Rebuilt:
    async with pool.acquire() as proxy, proxy.transaction():
        connection: asyncpg.Connection = proxy  # pyright: ignore[reportAssignmentType] - the pool's proxy
        durable = projection.durable.name
        checkpoint = await connection.fetchval(QUERIES.lock_checkpoint, durable, timeout=REBUILD_STATEMENT_S) or 0
        _, before = await hash_tables(connection, projection.tables)
        for table in reversed(projection.tables):
            await connection.execute(QUERIES.table_clear, table, timeout=REBUILD_STATEMENT_S)
        await _refold(connection, store, projection, checkpoint)
        rows, after = await hash_tables(connection, projection.tables)
    done = Rebuilt(name=projection.name, rows=rows, before_sha256=before, after_sha256=after, equal=before == after)
    log.info("projection.tables.rebuilt", **msgspec.structs.asdict(done), position=checkpoint)
    return done


async def _refold(connection: asyncpg.Connection, store: EventStore, projection: Projection, checkpoint: int) -> None:
    parked = {row["position"] for row in await connection.fetch(QUERIES.parked_positions, projection.durable.name)}
    position = 0
    while position < checkpoint:
        page = await store.read(after=position, up_to=checkpoint, categories=projection.durable.categories, limit=PAGE)
        if not page:
            return
        known = [event for event in page if event.global_position not in parked]
        if projection.project_page is not None:
            await projection.project_page(connection, known)
        else:
            for event in known:
                await projection.project(connection, event)
        position = page[-1].global_position


async def hash_tables(connection: asyncpg.Connection, tables: Sequence[str]) -> tuple[int, str]:
    """How many rows the tables have, and one SHA-256 over them: names, then rows as text in primary-key order.

    Within a transaction. The text does not depend on the session's time zone or formats.
    """
    digest = hashlib.sha256()
    count = 0
    for table in tables:
        digest.update(_framed(table))
        lines = connection.cursor(QUERIES.table_lines, table, prefetch=PAGE, timeout=REBUILD_STATEMENT_S)
        async for row in lines:
            digest.update(_framed(row["line"]))
            count += 1
    return count, digest.hexdigest()


def _framed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "big") + data
