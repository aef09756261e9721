"""`/api/events`: one reader of the log per gateway process, fanned out to every open stream.

The bus only says that there is something new. Log-backed frames carry `id: <position>`; a client that comes back with
Last-Event-ID gets the pages it missed from the log itself and then joins the reader, without a gap and without doubles.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import UUID

import msgspec
import structlog

from services.gateway.domain.event_frames import bare_body, progress_body, update_body, update_name
from services.gateway.domain.job_body import status_of
from services.gateway.domain.views import JobView, evolve_job_view, fold_job
from services.gateway.inbound.http import sse
from services.gateway.inbound.wakeups import Wakeups
from services.gateway.reads import JobReads
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import EventStore
from shared.problems import Rejected, Unavailable

PAGE = 500
QUEUE_FRAMES = 2000
KEPT_VIEWS = 1000
SAFETY_S = 2.0
PROGRESS_EVERY_S = 0.25
PAUSE_PER_STREAM_S = 0.00025
LONGEST_PAUSE_S = 0.5
PROGRESS_TYPES = ("metrics", "phase")
_DROPPED = {"type": "error", "message": "this client reads too slowly; reconnect with Last-Event-ID"}

log = structlog.stdlib.get_logger()


class Subscriber:
    """One open stream: what it has not been sent yet, bounded, and the position at which the shared reader took over.

    Frames come in blocks that all subscribers share: many followers cost one block, and one send each.
    """

    def __init__(self, ip: str, joined: int) -> None:
        self.ip = ip
        self.joined = joined
        self.dropped = False
        self._blocks: list[bytes] = []
        self._frames = 0
        self._over = False
        self._woken = asyncio.Event()

    async def frames(self, position: Callable[[], int]) -> AsyncGenerator[bytes]:
        """What is offered, a heartbeat when there is nothing, and why it ends when the client could not keep up."""
        while True:
            try:
                async with asyncio.timeout(sse.HEARTBEAT_S):
                    await self._woken.wait()
            except TimeoutError:
                yield sse.json_frame({"type": "heartbeat", "position": position()}, event="heartbeat")
                continue
            self._woken.clear()
            blocks, self._blocks, self._frames = self._blocks, [], 0
            for block in blocks:
                yield block
            if self.dropped:
                yield sse.json_frame(_DROPPED, event="error")
            if self.dropped or self._over:
                return

    def offer(self, block: bytes, frames: int) -> None:
        """Queues so many frames; a client that has too many unread is dropped instead of slowing the others."""
        if self.dropped:
            return
        self.dropped = self._frames + frames > QUEUE_FRAMES
        if not self.dropped:
            self._blocks.append(block)
            self._frames += frames
        self._woken.set()

    def end(self) -> None:
        """Nothing follows what is queued."""
        self._over = True
        self._woken.set()


class Framer:
    """Turns log events into frames; keeps the last jobs' views so that each frame can say the job's status."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._views: OrderedDict[UUID, JobView] = OrderedDict()

    async def frame(self, recorded: RecordedEvent) -> bytes:
        """The frame of one event, with its position as id."""
        try:
            view = await self._view(recorded)
            body = update_body(recorded, status_of(view) if view.exists else None)
        except msgspec.DecodeError as error:  # told without its content: one bad event must not stop the feed
            log.error("gateway.feed.unreadable_event", position=recorded.global_position, error=str(error))  # noqa: TRY400
            body = bare_body(recorded)
        return sse.json_frame(body, event=update_name(recorded), id_=recorded.global_position)

    async def _view(self, recorded: RecordedEvent) -> JobView:
        job_id = recorded.correlation_id
        view = self._views.pop(job_id, None)
        if view is None and recorded.category == "job" and recorded.stream_version == 1:  # its story begins here
            view = fold_job(job_id, [recorded])
        elif view is None:
            view = fold_job(job_id, await self._store.read_correlated(job_id, up_to=recorded.global_position))
        else:
            view = evolve_job_view(view, recorded, catalogue.decode(recorded))
        self._views[job_id] = view
        if len(self._views) > KEPT_VIEWS:
            self._views.popitem(last=False)
        return view


class Feed:
    """The shared reader and its subscribers."""

    def __init__(
        self, store: EventStore, reads: JobReads, wakeups: Wakeups, *, max_streams: int, max_per_ip: int
    ) -> None:
        self._store = store
        self._reads = reads
        self._wakeups = wakeups
        self._max_streams = max_streams
        self._max_per_ip = max_per_ip
        self._framer = Framer(store)
        self._subscribers: set[Subscriber] = set()
        self._position = 0
        self._stopping = False
        self._turn = asyncio.Lock()
        self._cursors: OrderedDict[UUID, int] = OrderedDict()

    async def run(self, stop: asyncio.Event) -> None:
        """Reads on whenever there is news, until `stop`; then ends every stream."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(stop, self._wakeups.log, self._read_on, pause_s=0))
            tasks.create_task(
                self._repeat(stop, self._wakeups.telemetry, self._read_progress, pause_s=PROGRESS_EVERY_S)
            )
            await stop.wait()
            self._stopping = True
            for subscriber in self._subscribers:
                subscriber.end()

    def open(self, ip: str, after: int | None) -> AsyncGenerator[bytes]:
        """The frames of one stream, from now on or after a position. Raises Unavailable over the limits."""
        of_ip = Counter(subscriber.ip for subscriber in self._subscribers)[ip]
        if len(self._subscribers) >= self._max_streams or of_ip >= self._max_per_ip:
            limits = f"GATEWAY_EVENT_STREAMS is {self._max_streams}, GATEWAY_EVENT_STREAMS_PER_IP {self._max_per_ip}"
            raise Unavailable(f"too many event streams are open ({limits})", retry_after_s=10)
        return self._frames(ip, after)

    async def _join(self, ip: str) -> Subscriber:
        async with self._turn:
            if not self._subscribers:  # nobody listened: begin at the present
                self._position, self._framer = await self._store.head(), Framer(self._store)
            subscriber = Subscriber(ip, self._position)
            self._subscribers.add(subscriber)
        if self._stopping:
            subscriber.end()
        return subscriber

    async def _frames(self, ip: str, after: int | None) -> AsyncGenerator[bytes]:
        # Joined here and not in open(): a client that is gone before the first frame must leave nothing behind.
        subscriber = await self._join(ip)
        try:
            hello = {"type": "connection", "status": "connected", "position": subscriber.joined}
            yield sse.json_frame(hello, event="connection", retry_ms=sse.RETRY_MS)
            async for missed in self._missed(after, subscriber.joined):
                yield missed
            async for frame in subscriber.frames(lambda: self._position):
                yield frame
        finally:
            self._subscribers.discard(subscriber)

    async def _missed(self, after: int | None, joined: int) -> AsyncGenerator[bytes]:
        """What lies between the client's last event and where the shared reader took over."""
        framer = Framer(self._store)
        while after is not None and after < joined:
            page = await self._store.read(after=after, up_to=joined, limit=PAGE)
            for recorded in page:
                yield await framer.frame(recorded)
            after = page[-1].global_position if page else joined

    async def _repeat(self, stop: asyncio.Event, news: asyncio.Event, step: Any, *, pause_s: float) -> None:
        while not stop.is_set():
            try:
                async with asyncio.timeout(SAFETY_S):
                    await news.wait()
            except TimeoutError:
                pass  # a hint may have been lost: look anyway
            news.clear()
            try:
                if self._subscribers:
                    await step()
            except Unavailable as away:
                log.warning("gateway.feed.waiting", detail=away.detail)
                news.set()
                await asyncio.sleep(1.0)
            if pause_s:
                await asyncio.sleep(pause_s)

    async def _read_on(self) -> None:
        while True:
            async with self._turn:
                page = await self._store.read(after=self._position, limit=PAGE)
                frames = [await self._framer.frame(recorded) for recorded in page]
                if frames:
                    self._publish(frames)
                    self._position = page[-1].global_position
            # Sending to all takes its time: what is committed meanwhile is the next block.
            await asyncio.sleep(min(len(self._subscribers) * PAUSE_PER_STREAM_S, LONGEST_PAUSE_S))
            if len(page) < PAGE:
                return

    async def _read_progress(self) -> None:
        for job_id in self._wakeups.take_reporting_jobs():
            known = self._cursors.pop(job_id, None)
            try:
                page = await self._reads.reports(
                    job_id, after=known or 0, types=PROGRESS_TYPES, limit=100 if known else 1, tail=known is None
                )
            except Rejected as refusal:
                log.warning("gateway.feed.no_progress", job_id=str(job_id), detail=refusal.detail)
                continue
            told = [progress_body(job_id, line) for line in page.lines]
            self._publish([sse.json_frame(body, event=name) for name, body in told])
            self._cursors[job_id] = page.cursor
            if len(self._cursors) > KEPT_VIEWS:
                self._cursors.popitem(last=False)

    def _publish(self, frames: list[bytes]) -> None:
        block = b"".join(frames)
        for subscriber in self._subscribers:
            subscriber.offer(block, len(frames))
