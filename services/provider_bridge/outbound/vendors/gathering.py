"""One call for all who ask at about the same time: how a small rate limit serves many runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.provider_bridge.outbound.egress import VendorRefused
from services.provider_bridge.outbound.ports import StartRefused
from shared.problems import Unavailable

T = TypeVar("T")


class Gathered(Generic[T]):
    """Calls of one kind, begun at least `interval_s` apart; each serves everybody who has asked before it began.

    Nobody is given what was read before they asked: a run that was started a moment ago is never missing.
    """

    def __init__(self, call: Callable[[], Awaitable[T]], interval_s: float) -> None:
        self._call = call
        self._interval_s = interval_s
        self._next: asyncio.Future[T] | None = None
        self._may_begin_at = 0.0

    async def __call__(self) -> T:
        """The result of a call that begins from now on. Raises what the call raises."""
        if self._next is not None:
            return await self._joined(self._next)
        loop = asyncio.get_running_loop()
        mine = self._next = loop.create_future()
        try:
            await asyncio.sleep(max(0.0, self._may_begin_at - loop.time()))
            self._may_begin_at = loop.time() + self._interval_s
            self._next = None  # whoever asks from here on asks for the next call
            result = await self._call()
        except (Unavailable, StartRefused, VendorRefused) as error:
            mine.set_exception(error)
            mine.exception()  # nobody may have joined
            raise
        else:
            mine.set_result(result)
            return result
        finally:
            if not mine.done():
                mine.cancel()
            if self._next is mine:
                self._next = None

    async def _joined(self, other: asyncio.Future[T]) -> T:
        try:
            return await asyncio.shield(other)
        except asyncio.CancelledError:
            if not other.cancelled():
                raise  # it is we who are to stop
            raise Unavailable("the call that this one had joined was broken off") from None
