"""Reads that many ask for at once are done once: whoever asks joins the next one, which begins after that.

So nobody is given an answer older than his question, and a crowd costs its owner one read after the other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Turn(Generic[T]):
    """One read: not begun, under way, or over with an answer, an error or neither."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.answers: list[T] = []
        self.error: Exception | None = None


class JoinedReads(Generic[T]):
    """For each key at most one read is under way, and one comes next that those who ask meanwhile share."""

    def __init__(self) -> None:
        self._coming: dict[Hashable, _Turn[T]] = {}
        self._running: dict[Hashable, _Turn[T]] = {}

    async def of(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """The answer to a read that begins from now on; `read` is for whoever does it. Raises what it raised."""
        while (turn := self._coming.get(key)) is not None:
            await turn.over.wait()
            if turn.error is not None:
                raise turn.error
            if turn.answers:
                return turn.answers[0]
            # It was cancelled together with whoever did it: that says nothing to those who waited for it.
        return await self._do(key, read)

    async def _do(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        turn = self._coming[key] = _Turn[T]()
        try:
            if (running := self._running.get(key)) is not None:
                await running.over.wait()
        except asyncio.CancelledError:
            del self._coming[key]
            turn.over.set()
            raise
        self._running[key] = self._coming.pop(key)
        try:
            answer = await read()
        except Exception as error:
            turn.error = error
            raise
        else:
            turn.answers.append(answer)
            return answer
        finally:
            del self._running[key]
            turn.over.set()
