"""Server-sent events of a stream that may stay open for ever, read until it is quiet."""

import asyncio
from collections.abc import AsyncGenerator

import httpx
import msgspec


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
