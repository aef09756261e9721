"""`/api/workers/stream`: what a worker is to do, as it is decided.

An event of the worker only says that there is something new; what, is asked of the bridge, and asked again every few
seconds anyway. So a wake-up that is lost costs a moment, and a worker that comes back is told everything again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime

import structlog

from services.gateway.domain.worker_bodies import KnownWorker
from services.gateway.inbound.http import sse
from services.gateway.inbound.wakeups import Wakeups
from services.gateway.workers import WorkerCommands
from shared.contracts.worker import PING_S, WorkerOrders
from shared.problems import Rejected, Unavailable

LOOK_AGAIN_S = 10.0
_REMOVED = "worker_not_found"

log = structlog.stdlib.get_logger()


class Told:
    """What this connection was told already."""

    def __init__(self) -> None:
        self._submitted: set[str] = set()
        self._cancelled: set[str] = set()
        self._draining = False
        self.to_end = False

    def news(self, orders: WorkerOrders) -> Iterator[bytes]:
        """The frames of what is new."""
        submit, cancel = orders.submit, orders.cancel
        if submit is not None and submit.attempt_id not in self._submitted:
            self._submitted.add(submit.attempt_id)
            yield sse.json_frame(submit, event="job_submit", id_=submit.attempt_id)
        if cancel is not None and cancel.attempt_id not in self._cancelled:
            self._cancelled.add(cancel.attempt_id)
            yield sse.json_frame(cancel, event="job_cancel")
        if orders.drain and not self._draining:
            yield sse.json_frame({"reason": "drained by an administrator"}, event="drain")
        self._draining = orders.drain
        if orders.shutdown:
            self.to_end = True
            yield sse.json_frame({"reason": "there is nothing more to do"}, event="shutdown")


class WorkerStreams:
    """Opens streams, a bounded number at a time."""

    def __init__(self, workers: WorkerCommands, wakeups: Wakeups, stop: asyncio.Event, *, max_streams: int) -> None:
        self._workers = workers
        self._wakeups = wakeups
        self._stop = stop
        self._max_streams = max_streams
        self._open = 0

    async def open(self, known: KnownWorker) -> AsyncGenerator[bytes]:
        """The frames of one stream. The token is checked before the answer begins."""
        if self._open >= self._max_streams:
            raise Unavailable(f"too many worker streams are open (GATEWAY_WORKER_STREAMS is {self._max_streams})")
        try:
            await self._workers.orders(known)
        except Rejected as refusal:
            if refusal.code != _REMOVED:
                raise
        return self._frames(known)

    async def _frames(self, known: KnownWorker) -> AsyncGenerator[bytes]:
        self._open += 1
        told = Told()
        try:
            with self._wakeups.job(known.worker_id) as woken:
                yield _ping(retry_ms=sse.RETRY_MS)
                pinged = time.monotonic()
                while not self._stop.is_set() and not told.to_end:
                    woken.clear()
                    try:
                        orders = await self._workers.orders(known)
                    except Unavailable as away:
                        log.warning("gateway.worker.not_told", worker_id=str(known.worker_id), detail=away.detail)
                    except Rejected as refusal:
                        yield _last_frame(refusal)
                        return
                    else:
                        for frame in told.news(orders):
                            yield frame
                    if not told.to_end:
                        await _woken(woken, min(LOOK_AGAIN_S, PING_S))
                    if time.monotonic() - pinged >= PING_S:
                        yield _ping()
                        pinged = time.monotonic()
        finally:
            self._open -= 1


def _ping(*, retry_ms: int | None = None) -> bytes:
    return sse.json_frame({"timestamp": datetime.now(UTC)}, event="ping", retry_ms=retry_ms)


def _last_frame(refusal: Rejected) -> bytes:
    if refusal.code == _REMOVED:
        return sse.json_frame({"reason": "this worker was removed"}, event="shutdown")
    return sse.json_frame({"error": refusal.code, "detail": refusal.detail}, event="error")


async def _woken(woken: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await woken.wait()
    except TimeoutError:
        return
