"""Server-sent events of a stream that may stay open for ever, read until it is quiet."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
import msgspec

QUIET_S = 1.5
_LONGEST_S = 10.0
_MOST_EVENTS = 5000


class ServerEvent(msgspec.Struct, frozen=True):
    """One event; `id` is empty where the server gave none."""

    id: str
    data: str


async def events_of(response: httpx.Response, *, quiet_s: float) -> AsyncGenerator[ServerEvent]:
    """Every event until the stream ends, or nothing has come for `quiet_s`.

    A stream that breaks after some events ends there: whoever reads on resumes behind the last one. One that breaks
    before the first raises httpx.HTTPError.
    """
    lines, loop = response.aiter_lines(), asyncio.get_running_loop()
    known, data, any_came = "", list[str](), False
    quiet_at = loop.time() + quiet_s
    while True:
        try:
            async with asyncio.timeout_at(quiet_at):
                line = await anext(lines)
        except (StopAsyncIteration, TimeoutError):
            return
        except httpx.HTTPError:
            if any_came:
                return
            raise
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            any_came = True
            yield ServerEvent(known, "\n".join(data))
            data = []
            quiet_at = loop.time() + quiet_s
        elif name == "id":
            known = value
        elif name == "data":
            data.append(value)


async def data_behind(response: httpx.Response, seen: int, *, last: str | None = None) -> list[str]:
    """The data of all events but the first `seen`, of a stream that begins anew each time and may never be quiet.

    It ends with the event `last`, and else as `events_of` does, or when a page is full: the next one goes on there.
    """
    found: list[str] = []
    until = asyncio.get_running_loop().time() + _LONGEST_S
    async with aclosing(events_of(response, quiet_s=QUIET_S)) as events:
        async for event in events:
            if event.data == last:
                break
            if seen > 0:
                seen -= 1
            else:
                found.append(event.data)
            if len(found) >= _MOST_EVENTS or asyncio.get_running_loop().time() > until:
                break
    return found
