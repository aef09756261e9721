"""A service process in the simulation: it can be crashed and paused at every one of its calls to the outside."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tests.sim.chaos import CRASH, PAUSE, Chaos

T = TypeVar("T")

BIRTH = datetime(2026, 11, 22, tzinfo=UTC)
"""The moment at which every simulation begins."""
_PAUSES_S = (1.0, 25.0)
_DOWN_S = (0.05, 8.0)


def moment(loop_time_s: float) -> datetime:
    """The date of a virtual second."""
    return BIRTH + timedelta(seconds=loop_time_s)


class Process:
    """One life of one replica. After `crash` nothing that it still does reaches anybody."""

    def __init__(self, name: str, chaos: Chaos, *, skew_s: float, died: Callable[["Process"], None]) -> None:
        self.name = name
        self.service = name.partition("/")[0]
        self.chaos = chaos
        self.alive = True
        self.parts: Any = None
        """What requests from outside are handed to, once it serves."""
        self.at_death: list[Callable[[], None]] = []
        self._skew_s = skew_s
        self._loop = asyncio.get_running_loop()
        self._died = died
        self._resumed: asyncio.Event | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def clock(self) -> datetime:
        """This machine's own idea of the time."""
        return moment(self._loop.time() + self._skew_s)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs something that ends with the process."""
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def step(self, place: str, kinds: Sequence[str] = ()) -> str | None:
        """Passes a place: may crash or pause us there; gives any other fault for the caller to carry out."""
        if not self.alive or self._resumed is not None:
            await self._hold()
        kind = self.chaos.fault(place, (*kinds, CRASH, PAUSE) if kinds else (CRASH, PAUSE))
        if kind is None:
            return None
        if kind == CRASH:
            self.crash()
            await self._hold()
        elif kind == PAUSE:
            self.pause(self.chaos.between(*_PAUSES_S))
            await self._hold()
            return None
        return kind

    @property
    def paused(self) -> bool:
        """Whether it stands still now."""
        return self._resumed is not None

    async def hold(self) -> None:
        """Returns when this process may go on: at once unless it is paused; never when it is dead."""
        if not self.alive or self._resumed is not None:
            await self._hold()

    async def _hold(self) -> None:
        while self._resumed is not None and self.alive:
            await self._resumed.wait()
        if not self.alive:
            await self._loop.create_future()  # our cancellation is on its way

    def pause(self, seconds: float) -> None:
        """Stops at the next call to the outside; timers that fall due meanwhile fire late, as after SIGSTOP."""
        if self._resumed is None and self.alive:
            self._resumed = asyncio.Event()
            self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    def crash(self) -> None:
        """Kills it: connections break, open transactions roll back, tasks end wherever they are."""
        if not self.alive:
            return
        self.alive = False
        self._resume()
        for goodbye in list(self.at_death):
            goodbye()
        for task in list(self._tasks):
            task.cancel()
        self._died(self)

    def down_s(self) -> float:
        """How long until its supervisor has started it again."""
        return self.chaos.between(*_DOWN_S)
