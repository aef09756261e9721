"""People's commands have the right of way: while several wait at the front, what follows from them takes larger steps.

All services share processors, or at least Postgres. What nobody waits for (the relay's pages, the consumers' events)
would take most of them from a burst of commands; done a little later it comes in larger steps and costs less.
The front claims the right of way over core NATS. A claim that is lost costs speed only: nothing depends on it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.contracts.subjects import FRONT_BUSY

MANY_COMMANDS = 4
"""So many at once are a burst; one person's clicks are not."""
CLAIM_EVERY_S = 0.05
CLAIM_LASTS_S = 0.15
LONGEST_REST_S = 1.0

Publish = Callable[[str], Awaitable[None]]
"""`publish(subject)`: a message without a body, stored nowhere."""

log = structlog.stdlib.get_logger()


class Claims:
    """The front's side: counts the commands that people wait for, and claims the right of way for many."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._waiting = 0
        self._claimed_at_s = 0.0

    @asynccontextmanager
    async def waited_for(self) -> AsyncGenerator[None]:
        """Around one command."""
        self._waiting += 1
        try:
            if self._waiting >= MANY_COMMANDS:
                await self._claim()
            yield
        finally:
            self._waiting -= 1

    async def _claim(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._claimed_at_s + CLAIM_EVERY_S:
            return
        self._claimed_at_s = now_s
        try:
            await self._publish(FRONT_BUSY)
        except (nats.errors.Error, OSError) as error:  # the command itself goes the same way, and says so to its sender
            log.debug("right_of_way.claim.lost", error=repr(error))


class RightOfWay:
    """The side of those who can wait: rests while a claim stands, each time for `longest_s` at most."""

    def __init__(self, *, lasts_s: float = CLAIM_LASTS_S, longest_s: float = LONGEST_REST_S) -> None:
        self._lasts_s = lasts_s
        self._longest_s = longest_s
        self._claimed_until_s = 0.0

    @property
    def is_claimed(self) -> bool:
        """Whether commands are waiting at the front."""
        return asyncio.get_running_loop().time() < self._claimed_until_s

    async def listen(self, client: Client) -> None:
        """Hears claims for as long as the connection lives."""
        await client.subscribe(FRONT_BUSY, cb=self._heard)  # pyright: ignore[reportUnknownMemberType] - nats-py leaves a future untyped

    def claim(self) -> None:
        """A claim that begins now."""
        self._claimed_until_s = asyncio.get_running_loop().time() + self._lasts_s

    async def give_way(self, unless: asyncio.Event) -> None:
        """Returns when no claim stands, at once when `unless` is set, after `longest_s` in any case."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._longest_s
        while not unless.is_set() and (rest_s := min(self._claimed_until_s, end_s) - loop.time()) > 0:
            try:
                async with asyncio.timeout(rest_s):
                    await unless.wait()
            except TimeoutError:
                continue

    async def _heard(self, _message: Msg) -> None:
        self.claim()
