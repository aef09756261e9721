"""Proves that a log is what it was: recomputes every hash and seal, and names each event that was tampered with.

Needs no more than the inspector's role. Reads one consistent snapshot, page by page.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import asyncpg
import msgspec

from shared.eventstore.api import ANY_POSITION
from shared.eventstore.auditor import Auditor, Fault, Seal
from shared.eventstore.group_commit import Connection
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import stored

PAGE_EVENTS = 2000
_LOWEST = -(2**63)
_TIMEOUT_S = 60.0

Progress = Callable[[int, int], None]
"""Called after each page with how many events were checked and the log's last position."""


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked and what is wrong. Events above `sealed_to` are held by their streams' chains alone."""

    events: int
    streams: int
    seals: int
    head: int
    sealed_to: int
    duration_s: float
    faults: list[Fault]

    @property
    def is_intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def _no_progress(_checked: int, _head: int) -> None:
    return


async def verify(log: str | asyncpg.Pool, progress: Progress = _no_progress) -> VerifyReport:
    """Checks the whole log behind a DSN or a pool."""
    began = time.monotonic()
    async with _snapshot(log) as connection:
        head: int = await connection.fetchval(QUERIES.head, timeout=_TIMEOUT_S)
        seals = [Seal(**dict(row.items())) for row in await connection.fetch(QUERIES.all_seals, timeout=_TIMEOUT_S)]
        published: int | None = await connection.fetchval(QUERIES.published_position, timeout=_TIMEOUT_S)
        auditor = Auditor(seals, published or 0)
        after = _LOWEST
        while rows := await connection.fetch(QUERIES.read_all, after, ANY_POSITION, PAGE_EVENTS, timeout=_TIMEOUT_S):
            for row in rows:
                auditor.take(stored(row))
            after = rows[-1]["global_position"]
            progress(auditor.events, head)
    return VerifyReport(
        events=auditor.events,
        streams=auditor.streams,
        seals=len(seals),
        head=head,
        sealed_to=auditor.sealed_to,
        duration_s=time.monotonic() - began,
        faults=auditor.finish(),
    )


@asynccontextmanager
async def _snapshot(log: str | asyncpg.Pool) -> AsyncGenerator[Connection]:
    """A connection in a read-only transaction that sees one moment of the log."""
    if isinstance(log, str):
        connection = await asyncpg.connect(log, timeout=_TIMEOUT_S)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                yield connection
        finally:
            await connection.close(timeout=_TIMEOUT_S)
    else:
        async with (
            log.acquire(timeout=_TIMEOUT_S) as pooled,
            pooled.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield pooled
