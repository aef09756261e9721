"""`logs/stream`: one job's log as it grows, read from storage by cursor, so nothing is lost or sent twice."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

import structlog

from services.gateway.domain.job_body import status_of
from services.gateway.domain.report_text import LOG_TYPES, log_text
from services.gateway.inbound.http import sse
from services.gateway.inbound.wakeups import Wakeups
from services.gateway.reads import JobReads, Reports
from shared.problems import Rejected, Unavailable

PAGE_LINES = 500
MAX_STREAMS = 200
RETRY_S = 1.0

log = structlog.stdlib.get_logger()


class LogStreams:
    """Opens streams, a bounded number at a time."""

    def __init__(self, reads: JobReads, wakeups: Wakeups, stop: asyncio.Event) -> None:
        self._reads = reads
        self._wakeups = wakeups
        self._stop = stop
        self._open = 0

    async def open(self, job_id: UUID, *, after: int) -> AsyncGenerator[bytes]:
        """The frames of one stream. The first page is read before the answer begins: storage away is a 503."""
        if self._open >= MAX_STREAMS:
            raise Unavailable("too many log streams are open", retry_after_s=10)
        first = await self._page(job_id, after)
        return self._frames(job_id, after, first)

    async def _frames(self, job_id: UUID, after: int, first: Reports) -> AsyncGenerator[bytes]:
        self._open += 1
        try:
            with self._wakeups.job(job_id) as woken:
                for text in _texts(first):
                    yield text
                after = max(after, first.cursor)
                while not self._stop.is_set():
                    woken.clear()
                    # The state before the page: a job that had ended then has no line that the page could miss.
                    status = await self._ended(job_id)
                    page = await self._page_when_there(job_id, after)
                    for text in _texts(page):
                        yield text
                    if page.lines:
                        after = page.cursor
                    elif status is not None:
                        yield sse.frame(status, event="done")
                        return
                    elif not await _woken(woken):
                        yield sse.COMMENT
        finally:
            self._open -= 1

    async def _page(self, job_id: UUID, after: int) -> Reports:
        return await self._reads.reports(job_id, after=after, types=LOG_TYPES, limit=PAGE_LINES)

    async def _page_when_there(self, job_id: UUID, after: int) -> Reports:
        """The next page, however long storage is away; nothing more once the gateway stops."""
        while not self._stop.is_set():
            try:
                return await self._page(job_id, after)
            except Unavailable as away:
                log.warning("gateway.log_stream.waiting", detail=away.detail)
                await asyncio.sleep(RETRY_S)
        return Reports(lines=[], cursors=[], cursor=after)

    async def _ended(self, job_id: UUID) -> str | None:
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


async def _woken(woken: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(sse.HEARTBEAT_S):
            await woken.wait()
    except TimeoutError:
        return False
    return True
