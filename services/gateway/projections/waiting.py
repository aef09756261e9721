"""Where waiting jobs stand: one order of them all, read again when it may have changed, and not too often.

Reading it costs in proportion to how many wait, so it is at most a twentieth of the time that is spent on it.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

from services.gateway.projections.jobs import ID_BYTES, JobsView

SHARE = 20
"""The order is used for so many times as long as it took to read."""
PAUSE_SHARE = 4
"""So many times as long passes before it is read again because a job is asked for that it does not have."""


class WaitingPlaces:
    """The places of waiting jobs by the bytes of their ids, counted from 1.

    `seen()` is how far the view is folded, None if that is not known.
    """

    def __init__(self, jobs: JobsView, seen: Callable[[], int | None]) -> None:
        self._jobs = jobs
        self._seen = seen
        self._places: dict[bytes, int] = {}
        self._position: int | None = None
        self._read_at = 0.0
        self._cost_s = 0.0
        self._turn = asyncio.Lock()

    async def of(self, job_ids: Collection[bytes]) -> Mapping[bytes, int]:
        """The places of these jobs and of others; those that do not wait (any more) are absent."""
        if not self._is_exact() and self._age_s() > SHARE * self._cost_s:
            await self._read(self._read_at)
        if not self._is_exact() and not all(map(self._places.__contains__, job_ids)):
            await self._read(self._read_at)
        return self._places

    def _is_exact(self) -> bool:
        return self._position is not None and self._position == self._seen()

    def _age_s(self) -> float:
        return time.monotonic() - self._read_at

    async def _read(self, known_at: float) -> None:
        """Reads the order, unless somebody has since `known_at`; waits first when that was just done."""
        async with self._turn:
            if self._read_at != known_at:
                return
            await asyncio.sleep(max(0.0, PAUSE_SHARE * self._cost_s - self._age_s()))
            started, position = time.monotonic(), self._seen()
            order = await self._jobs.waiting()
            starts = range(0, len(order), ID_BYTES)
            self._places = {order[at : at + ID_BYTES]: place for place, at in enumerate(starts, start=1)}
            self._read_at = time.monotonic()
            self._position, self._cost_s = position, self._read_at - started
