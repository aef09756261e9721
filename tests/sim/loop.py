"""An event loop whose time is a number: when nothing is ready it jumps to the next timer. No sockets, no threads."""

import asyncio
from typing import Any, cast


class NothingDueError(Exception):
    """Every task waits for something that will never come."""


class _Jump:
    """Stands where the loop's selector would be: waiting is moving the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Moves the time to the next timer; no file is ever ready."""
        if timeout is None:
            raise NothingDueError
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs tasks in the order in which they became ready; the same program gives the same order every time."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = _Jump(self)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def jump(self) -> None:
        """Goes to the next timer at once."""
        timers = cast("list[asyncio.TimerHandle]", vars(self)["_scheduled"])  # BaseEventLoop's own heap
        self._now_s = max(self._now_s, timers[0].when())

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no files."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake us."""
