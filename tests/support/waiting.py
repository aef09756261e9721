"""How a test waits: for a fact, with a deadline, never for a time."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool]], deadline_s: float = 60.0) -> None:
    """Returns when the check holds, or raises TimeoutError."""
    async with asyncio.timeout(deadline_s):
        while not await check():  # noqa: ASYNC110 - the fact lies in another process, which sets no Event of ours
            await asyncio.sleep(0.02)
