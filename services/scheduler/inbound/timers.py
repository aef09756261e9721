"""When the dispatcher looks at the queue: after commits, when a retry falls due, and every second to be safe."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import structlog

from services.scheduler.dispatcher import Dispatcher, Round
from shared.clock import Clock
from shared.eventstore.api import EventStore

SAFETY_S = 1.0
MIN_WAIT_S = 0.01

log = structlog.stdlib.get_logger()


class DispatchLoop:
    """Runs rounds until it is told to stop. A round that fails is logged and tried again after SAFETY_S."""

    def __init__(self, dispatcher: Dispatcher, store: EventStore, clock: Clock) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._clock = clock
        self._woken = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Returns soon after `stop` is set; a round under way is finished."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [tasks.create_task(self._listen()), tasks.create_task(self._wake_at(stop))]
            while not stop.is_set():
                self._woken.clear()
                wait_s = await self._round()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), wait_s)
            for helper in helpers:
                helper.cancel()

    async def _listen(self) -> None:
        async for _ in self._store.listen():
            self._woken.set()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._woken.set()

    async def _round(self) -> float:
        """One round; answers how long to wait for the next one unless something is committed before."""
        try:
            done = await self._dispatcher.run_round()
        except Exception:
            log.exception("scheduler.queue.round_failed")
            return SAFETY_S
        if done.dispatched:
            log.info("scheduler.jobs.dispatched", count=done.dispatched)
        return self._wait_s(done)

    def _wait_s(self, done: Round) -> float:
        if done.unfinished:
            return MIN_WAIT_S
        if done.due_at is None:
            return SAFETY_S
        due_in = done.due_at - self._clock()
        return min(max(due_in / timedelta(seconds=1), MIN_WAIT_S), SAFETY_S)
