"""A long past, fast: decoded events in log order without their envelopes, the next page read while this one is folded.

For folds over the whole log or a category, where `EventStore.read` would spend most of its time on metadata that no
fold looks at. The pages are read from Postgres, never from the bus, and each is decoded at once.
"""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import asyncpg
import msgspec

from shared.contracts.catalogue import decode_list, reader
from shared.contracts.job import Event
from shared.eventstore.api import ANY_POSITION
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.eventstore.queries import QUERIES

PAGE_EVENTS = 1000
"""More at once leave the processor's cache before they are folded."""
_TIMEOUT_S = 60.0
_COLLECT_EVERY = 100_000
_USUAL = gc.get_threshold()

Take = Callable[[str, Event | None], object]
"""`take(stream, event)`; None for an event of a type that this version does not know."""


async def replay(
    pool: asyncpg.Pool, take: Take, *, category: str | None = None, after: int = 0, up_to: int = ANY_POSITION
) -> int:
    """Calls `take` with each event with `after < position <= up_to`, in log order; of every category, or of one.

    Gives the number of events. The event loop gets its turn between two pages.

    Raises:
        Unavailable: Postgres is away.
    """
    with unavailable_on_outage("read"):
        async with pool.acquire(timeout=_TIMEOUT_S) as connection:
            return await _replay(connection, take, category, after, up_to)


async def _replay(connection: Connection, take: Take, category: str | None, after: int, up_to: int) -> int:
    count = 0
    reading = _start(_page(connection, category, after, up_to))
    try:
        while (page := await reading)["last_position"] is not None:
            last: int = page["last_position"]
            reading = _start(_page(connection, category, last, up_to))
            await asyncio.sleep(0)  # the next page is asked for before this one keeps the process busy
            events = _decode(page["payloads"])
            if events is None:
                await asyncio.wait([reading])
                events = await _one_by_one(connection, category, after, last)
            streams: list[str] = page["streams"].split(",")  # no comma is in the name of one
            for stream, event in zip(streams, events, strict=True):
                take(stream, event)
            count, after = count + len(streams), last
    finally:
        reading.cancel()
        await asyncio.wait([reading])  # the connection is free again
    return count


def _decode(payloads: bytes) -> Sequence[Event | None] | None:
    """A page's events at once; None if one of them is of an older or unknown type."""
    try:
        return decode_list(payloads)
    except msgspec.ValidationError:
        return None


def _start(reading: Coroutine[Any, Any, asyncpg.Record]) -> asyncio.Task[asyncpg.Record]:
    # Not in a TaskGroup, which would wrap its error: it is awaited or cancelled by the one who started it.
    return asyncio.get_running_loop().create_task(reading)


async def _page(connection: Connection, category: str | None, after: int, up_to: int) -> asyncpg.Record:
    """A row with three values, null after the last page."""
    if category is None:
        found = await connection.fetchrow(QUERIES.replay_all, after, up_to, PAGE_EVENTS, timeout=_TIMEOUT_S)
    else:
        query = QUERIES.replay_category
        found = await connection.fetchrow(query, after, up_to, PAGE_EVENTS, category, timeout=_TIMEOUT_S)
    return cast("asyncpg.Record", found)  # an aggregate always has a row


async def _one_by_one(connection: Connection, category: str | None, after: int, last: int) -> list[Event | None]:
    rows = await connection.fetch(QUERIES.replay_types, after, last, category, timeout=_TIMEOUT_S)
    return [reader(row["type"])(row["data"]) for row in rows]


@contextmanager
def rare_collections() -> Generator[None]:
    """What is alive now is not looked at again, and new objects seldom: a fold makes millions, and no cycles."""
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *_USUAL[1:])
    try:
        yield
    finally:
        gc.set_threshold(*_USUAL)  # also where two overlap: the later one only becomes slower
        gc.unfreeze()
