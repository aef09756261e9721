"""When the dispatcher looks at the queue: after commits, when a retry falls due, and every second to be safe."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import structlog

from services.scheduler.dispatcher import Dispatcher, Round
from shared.clock import Clock
from shared.eventstore.api import EventStore
from shared.eventstore.outages import OUTAGES
from shared.problems import Unavailable

SAFETY_S = 1.0
MIN_WAIT_S = 0.01
PAUSE_SHARE = 3
LONGEST_PAUSE_S = 0.05

log = structlog.stdlib.get_logger()


class DispatchLoop:
    """Runs rounds until it is told to stop. A round that fails is logged and tried again after `safety_s`.

    An outage of the log is one line; a bug shows its traceback.
    """

    def __init__(self, dispatcher: Dispatcher, store: EventStore, clock: Clock, *, safety_s: float = SAFETY_S) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._clock = clock
        self._safety_s = safety_s
        self._woken = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Returns soon after `stop` is set; a round under way is finished."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [tasks.create_task(self._listen()), tasks.create_task(self._wake_at(stop))]
            await self._rounds(stop)
            for helper in helpers:
                helper.cancel()

    async def _rounds(self, stop: asyncio.Event) -> None:
        """A commit leads to a round if it was about jobs; a deadline to one in any case."""
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s()
        while not stop.is_set():
            self._woken.clear()
            began_s = now_s()
            wait_s = await self._round(is_due=began_s >= deadline_s)
            if wait_s is not None:
                deadline_s = now_s() + wait_s
            # Under load one look sees many commits: the queue's lock is free most of the time.
            await asyncio.sleep(min(PAUSE_SHARE * (now_s() - began_s), LONGEST_PAUSE_S))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), max(deadline_s - now_s(), 0))

    async def _listen(self) -> None:
        async for _ in self._store.listen():
            self._woken.set()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._woken.set()

    async def _round(self, *, is_due: bool) -> float | None:
        """One round; answers in how many seconds the next one is due at the latest, None if nothing was looked at."""
        try:
            done = await (self._dispatcher.run_round() if is_due else self._dispatcher.run_round_if_changed())
        except (Unavailable, *OUTAGES) as error:
            log.warning("scheduler.queue.unavailable", error=repr(error))
            return self._safety_s
        except Exception:
            log.exception("scheduler.queue.round_failed")
            return self._safety_s
        if done is None:
            return None
        if done.dispatched:
            log.info("scheduler.jobs.dispatched", count=done.dispatched)
        return self._due_in_s(done)

    def _due_in_s(self, done: Round) -> float:
        if done.unfinished:
            return MIN_WAIT_S
        if done.due_at is None:
            return self._safety_s
        due_in = done.due_at - self._clock()
        return min(max(due_in / timedelta(seconds=1), MIN_WAIT_S), self._safety_s)
