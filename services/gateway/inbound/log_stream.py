"""`logs/stream`: one job's log as it grows, read from storage by cursor, so nothing is lost or sent twice.

Followers of one job that stand at the same cursor share one read.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Generic, TypeVar
from uuid import UUID

import structlog

from services.gateway.domain.job_body import status_of
from services.gateway.domain.report_text import LOG_TYPES, log_text
from services.gateway.inbound.http import sse
from services.gateway.inbound.wakeups import Wakeups
from services.gateway.reads import JobReads, Reports
from shared.problems import Rejected, Unavailable

PAGE_LINES = 500
RETRY_S = 1.0
LOOK_AGAIN_S = 0.25
"""A hint of an event may be quicker than the view that tells of it: after a hint the stream looks once more so soon."""
PAUSE_PER_STREAM_S = 0.00025
LONGEST_PAUSE_S = 0.5

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = structlog.stdlib.get_logger()


class SharedReads(Generic[K, V]):
    """Answers all who ask for the same thing while it is being read with that one read."""

    def __init__(self, read: Callable[[K], Awaitable[V]]) -> None:
        self._read = read
        self._under_way: dict[K, asyncio.Future[V]] = {}

    async def get(self, key: K) -> V:
        """What `read(key)` gives, or raises; Unavailable when the one who read for all was called off."""
        under_way = self._under_way.get(key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        answer = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            value = await self._read(key)
        except BaseException as error:
            told = error if isinstance(error, Exception) else Unavailable("the read was called off")
            answer.set_exception(told)
            answer.exception()  # perhaps nobody else asked
            raise
        else:
            answer.set_result(value)
            return value
        finally:
            del self._under_way[key]


class LogStreams:
    """Opens streams, a bounded number at a time."""

    def __init__(self, reads: JobReads, wakeups: Wakeups, stop: asyncio.Event, *, max_streams: int) -> None:
        self._reads = reads
        self._wakeups = wakeups
        self._stop = stop
        self._max_streams = max_streams
        self._open = 0
        self._pages = SharedReads[tuple[UUID, int], Reports](self._read_page)
        self._ends = SharedReads[UUID, str | None](self._read_end)

    async def open(self, job_id: UUID, *, after: int) -> AsyncGenerator[bytes]:
        """The frames of one stream. The first page is read before the answer begins: storage away is a 503."""
        if self._open >= self._max_streams:
            limit = f"GATEWAY_LOG_STREAMS is {self._max_streams}"
            raise Unavailable(f"too many log streams are open ({limit})", retry_after_s=10)
        first = await self._pages.get((job_id, after))
        return self._frames(job_id, after, first)

    async def _frames(self, job_id: UUID, after: int, first: Reports) -> AsyncGenerator[bytes]:
        self._open += 1
        try:
            with self._wakeups.job(job_id) as woken:
                for text in _texts(first):
                    yield text
                after = max(after, first.cursor)
                looks_again = True
                while not self._stop.is_set():
                    woken.clear()
                    # The state before the page: a job that had ended then has no line that the page could miss.
                    status = await self._ends.get(job_id)
                    page = await self._page_when_there(job_id, after)
                    for text in _texts(page):
                        yield text
                    if page.lines:
                        after = page.cursor
                        await asyncio.sleep(min(self._open * PAUSE_PER_STREAM_S, LONGEST_PAUSE_S))
                    elif status is not None:
                        yield sse.frame(status, event="done")
                        return
                    elif await _woken(woken, LOOK_AGAIN_S if looks_again else sse.HEARTBEAT_S):
                        looks_again = True
                    elif looks_again:
                        looks_again = False
                    else:
                        yield sse.COMMENT
        finally:
            self._open -= 1

    async def _read_page(self, place: tuple[UUID, int]) -> Reports:
        job_id, after = place
        return await self._reads.reports(job_id, after=after, types=LOG_TYPES, limit=PAGE_LINES)

    async def _page_when_there(self, job_id: UUID, after: int) -> Reports:
        """The next page, however long storage is away; nothing more once the gateway stops."""
        while not self._stop.is_set():
            try:
                return await self._pages.get((job_id, after))
            except Unavailable as away:
                log.warning("gateway.log_stream.waiting", detail=away.detail)
                await asyncio.sleep(RETRY_S)
        return Reports(lines=[], cursors=[], cursor=after)

    async def _read_end(self, job_id: UUID) -> str | None:
        try:
            view = await self._reads.view(job_id)
        except Rejected:
            return "stream_end"
        except Unavailable:
            return None
        return status_of(view) if view.job.terminal else None


def _texts(page: Reports) -> list[bytes]:
    lines = zip(page.lines, page.cursors, strict=True)
    return [sse.frame(log_text(line), id_=cursor) for line, cursor in lines]


async def _woken(woken: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await woken.wait()
    except TimeoutError:
        return False
    return True
