"""Hints from the bus that there is something new to read.

What is new is read from the log and from storage: a hint that is lost costs a moment, one that comes twice nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from uuid import UUID

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from shared.messaging.connection import Bus

SUBJECT_PARTS = 3
MAX_NOTED_JOBS = 10_000


class Wakeups:
    """One core NATS subscription per gateway process, shared by every open stream."""

    def __init__(self, bus: Bus) -> None:
        self._client = bus.client
        self._of_job: dict[str, set[asyncio.Event]] = {}
        self.log = asyncio.Event()
        """Set when an event was published."""
        self.telemetry = asyncio.Event()
        """Set when a job reported something; `take_reporting_jobs` says which."""
        self._reporting: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Listens until `stop`, then wakes everybody so that they see it."""
        events = await self._subscribe("evt.>", self._on_event)
        reports = await self._subscribe("tel.>", self._on_report)
        await stop.wait()
        for waiting in self._of_job.values():
            for woken in waiting:
                woken.set()
        self.log.set()
        self.telemetry.set()
        if self._client.is_connected:
            await events.unsubscribe()
            await reports.unsubscribe()

    @contextmanager
    def job(self, job_id: UUID) -> Generator[asyncio.Event]:
        """An event that is set whenever this job has news."""
        woken = asyncio.Event()
        waiting = self._of_job.setdefault(str(job_id), set())
        waiting.add(woken)
        try:
            yield woken
        finally:
            waiting.discard(woken)
            if not waiting:
                self._of_job.pop(str(job_id), None)

    def take_reporting_jobs(self) -> set[UUID]:
        """The jobs that reported since the last call."""
        taken, self._reporting = self._reporting, set()
        self.telemetry.clear()
        return {UUID(job_id) for job_id in taken}

    async def _subscribe(self, subject: str, react: Callable[[Msg], Awaitable[None]]) -> Subscription:
        return await self._client.subscribe(subject, cb=react)  # pyright: ignore[reportUnknownMemberType] - nats-py's Future

    async def _on_event(self, message: Msg) -> None:
        self.log.set()
        self._wake(message.subject.rpartition(".")[2])

    async def _on_report(self, message: Msg) -> None:
        parts = message.subject.split(".")
        if len(parts) != SUBJECT_PARTS:
            return
        self._wake(parts[1])
        if len(self._reporting) < MAX_NOTED_JOBS:
            self._reporting.add(parts[1])
        self.telemetry.set()

    def _wake(self, job_id: str) -> None:
        for woken in self._of_job.get(job_id, ()):
            woken.set()
