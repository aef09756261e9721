"""The bridge's heartbeat: drives every due attempt, woken by commands and events, and at least once per interval."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec
import structlog

from services.provider_bridge import metrics
from services.provider_bridge.driving import Driver
from services.provider_bridge.outbound.leases import LeaseLost, Leases
from services.provider_bridge.outbound.ports import StaleEpoch
from services.provider_bridge.sweeping import Sweeper
from shared.problems import Rejected, Unavailable

MAX_DUE = 1000
MAX_AT_ONCE = 8
STEP_TIMEOUT_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0

log = structlog.stdlib.get_logger()


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often what is looked at, in seconds."""

    interval_s: float = 1.0
    renew_s: float = 5.0
    sweep_s: float = 30.0


class Reconciler:
    """Three loops over one set of attempts: drive them, keep their leases, sweep up runs that nobody waits for."""

    def __init__(self, driver: Driver, leases: Leases, sweeper: Sweeper, *, sites: list[str], pace: Pace) -> None:
        self._driver = driver
        self._leases = leases
        self._sweeper = sweeper
        self._sites = sites
        self._pace = pace
        self._wake = asyncio.Event()
        self._nudged: set[UUID] = set()
        self._pauses: dict[UUID, tuple[float, float]] = {}
        """Attempt -> (not before this second of the event loop, the pause after the next failure)."""

    def nudge(self, attempt_id: UUID) -> None:
        """Looks at this attempt at once, even if no projection shows it yet."""
        self._nudged.add(attempt_id)
        self._pauses.pop(attempt_id, None)
        self._wake.set()

    async def drive(self, stop: asyncio.Event) -> None:
        """Drives attempts until `stop` is set, then lets their leases go; their runs live on."""
        while not stop.is_set():
            self._wake.clear()
            await self._guarded("bridge.reconcile.failed", self.tick)
            await _wait(self._wake, self._pace.interval_s)
        await self._guarded("bridge.leases.release_failed", self._leases.release)

    async def renew(self, stop: asyncio.Event) -> None:
        """Keeps the leases of this process until `stop` is set."""
        while not stop.is_set():
            await self._guarded("bridge.leases.renewal_failed", self._leases.renew)
            await _wait(stop, self._pace.renew_s)

    async def sweep(self, stop: asyncio.Event) -> None:
        """Ends orphaned runs until `stop` is set."""
        while not stop.is_set():
            await self._guarded("bridge.sweep.failed", self._sweeper.sweep)
            await _wait(stop, self._pace.sweep_s)

    async def tick(self) -> None:
        """One step of every due attempt."""
        nudged, self._nudged = self._nudged, set()
        due = await self._leases.due(self._sites, MAX_DUE)
        wanted = dict.fromkeys([*nudged, *due, *self._leases.held])
        now = asyncio.get_running_loop().time()
        slots = asyncio.Semaphore(MAX_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for attempt_id in wanted:
                if self._pauses.get(attempt_id, (0.0, 0.0))[0] <= now:
                    tasks.create_task(self._drive_one(attempt_id, slots))

    async def _drive_one(self, attempt_id: UUID, slots: asyncio.Semaphore) -> None:
        try:
            async with slots, asyncio.timeout(STEP_TIMEOUT_S):
                await self._driver.drive(attempt_id)
        except (LeaseLost, StaleEpoch) as lost:
            self._leases.forget(attempt_id)
            self._put_off(attempt_id, type(lost).__name__)
        except Rejected as refusal:  # another owner was faster; the next look starts from what it wrote
            self._leases.forget(attempt_id)
            self._put_off(attempt_id, refusal.code)
        except (Unavailable, TimeoutError) as away:
            self._put_off(attempt_id, repr(away))
        except Exception:
            log.exception("bridge.attempt.step_failed", attempt_id=str(attempt_id))
            self._put_off(attempt_id, "bug")
        else:
            self._pauses.pop(attempt_id, None)

    def _put_off(self, attempt_id: UUID, reason: str) -> None:
        _, pause_s = self._pauses.get(attempt_id, (0.0, FIRST_PAUSE_S))
        self._pauses[attempt_id] = (asyncio.get_running_loop().time() + pause_s, min(pause_s * 2, LONGEST_PAUSE_S))
        metrics.steps_failed.add(1, {"reason": reason.partition("(")[0]})
        log.warning("bridge.attempt.put_off", attempt_id=str(attempt_id), reason=reason, pause_s=pause_s)

    async def _guarded(self, event: str, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Unavailable as away:
            log.warning(event, detail=away.detail)
        except Exception:
            log.exception(event)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    """Returns when the event is set or the time is over."""
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
