"""Logs that come as server-sent events from their beginning each time: what is new in them by now."""

import asyncio
from collections.abc import AsyncIterator

import httpx

IDLE_S = 1.5
"""A log that has been silent for so long has told what it has."""
LONGEST_S = 10.0
MOST_EVENTS = 5000
"""Of one page: who wants more asks again."""


async def new_events(response: httpx.Response, skip: int, *, until: str | None = None) -> list[str]:
    """The data of every event but the first `skip`, as far as they have come.

    Ends with the stream, with the event `until`, with silence, or where the connection breaks: then the rest is read
    the next time, when the stream begins anew.
    """
    events: list[str] = []
    lines = response.aiter_lines()
    try:
        async with asyncio.timeout(LONGEST_S):
            while len(events) < MOST_EVENTS and (line := await _next(lines)) is not None:
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").removeprefix(" ")
                if data == until:
                    break
                if skip > 0:
                    skip -= 1
                else:
                    events.append(data)
    except (TimeoutError, httpx.TransportError):
        pass  # what has come is true all the same
    return events


async def _next(lines: AsyncIterator[str]) -> str | None:
    async with asyncio.timeout(IDLE_S):
        return await anext(lines, None)
