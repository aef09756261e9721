"""Notices workers that have gone silent, gives up runs whose workers stay away, forgets workers that come no more."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import structlog

from services.provider_bridge.domain.worker import Worker
from services.provider_bridge.domain.worker_acts import Missed, Release, Remove, WorkerAct
from services.provider_bridge.outbound.worker_store import Presence, WorkerStore
from shared.contracts.worker import OFFLINE_S
from shared.problems import Rejected, Unavailable

log = structlog.stdlib.get_logger()


class WorkerOffers:
    """Has what own workers offer written down as soon as one of them comes, goes, or gets something to do."""

    def __init__(self, write_down: Callable[[], Awaitable[None]]) -> None:
        self._write_down = write_down
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something was written about a worker."""
        self._changed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Goes on until `stop` is set; what is missed here, the next look at every provider finds."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            changing = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait({stopping, changing}, return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            if self._changed.is_set():
                self._changed.clear()
                await self._write_down()


class WatchPace(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds."""

    look_s: float = 15.0
    lost_s: float = 900.0
    """How long a worker may stay offline before its run is given up."""
    never_registered_s: float = 300.0
    """Ephemeral workers only: a person may take longer to set up a machine that stays."""
    ephemeral_offline_s: float = 3600.0


class WorkerWatch:
    """One loop. Several bridges may watch the same workers: what one has written, the others find done."""

    def __init__(self, store: WorkerStore, nudge: Callable[[UUID], None], pace: WatchPace) -> None:
        self._store = store
        self._nudge = nudge
        self._pace = pace
        self._watching_since: datetime | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Looks until `stop` is set."""
        while not stop.is_set():
            try:
                await self.look()
            except Unavailable as away:
                log.warning("bridge.workers.unwatched", detail=away.detail)
            try:
                async with asyncio.timeout(self._pace.look_s):
                    await stop.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """One look at every worker."""
        now = self._store.clock()
        # While nobody watched, nobody listened either: what was not heard before we began counts for nothing.
        since = self._watching_since = self._watching_since or now
        for presence in await self._store.present():
            state = await self._store.load(presence.worker_id)
            if isinstance(state, Worker) and (act := self._due(state, presence, since, now)) is not None:
                await self._do(presence.worker_id, state.name, act)

    async def _do(self, worker_id: UUID, name: str, act: WorkerAct) -> None:
        try:
            done = await self._store.commit(worker_id, act)
        except Rejected as refusal:  # it came back, or another bridge was faster
            log.info("bridge.worker.moved", worker_id=str(worker_id), reason=refusal.code)
            return
        log.warning("bridge.worker.missed", worker_id=str(worker_id), name=name, act=type(act).__name__)
        for attempt_id in done.released:
            self._nudge(attempt_id)

    def _due(self, state: Worker, presence: Presence, since: datetime, now: datetime) -> WorkerAct | None:
        last_heard_at = presence.heard_at or presence.created_at
        silent = now - max(last_heard_at, since)
        pace, is_ephemeral = self._pace, state.worker_type == "ephemeral"
        if state.registered is None:
            over = is_ephemeral and now - max(presence.created_at, since) > timedelta(seconds=pace.never_registered_s)
            return Remove(force=False, at=now, reason="never_registered") if over else None
        if state.online:
            missed = silent > timedelta(seconds=OFFLINE_S)
            return Missed(last_heard_at=last_heard_at, at=now) if missed else None
        if state.run is not None and silent > timedelta(seconds=OFFLINE_S + pace.lost_s):
            return Release(attempt_id=state.run.attempt_id, outcome="lost", ended_at=last_heard_at, at=now)
        if state.run is None and is_ephemeral and silent > timedelta(seconds=pace.ephemeral_offline_s):
            return Remove(force=False, at=now, reason="ephemeral_offline")
        return None
