"""A TCP proxy between one process and one server that can hold, drop, repeat and refuse what passes through it.

What passes is cut into frames by a protocol of its own (`nats_frames.py`, `postgres_frames.py`, `http_frames.py`);
each frame says which named steps it is, and a witness says what becomes of it.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from deploy.embedded.process import LOOPBACK, free_port

_READ_LIMIT_BYTES = 16 * 1024 * 1024
_AGAIN_S = 0.05
"""How late a second copy comes: after the first was handled, most of the time."""

Bytes = asyncio.StreamReader


class Verdict(enum.Enum):
    """What becomes of a frame."""

    PASS = "pass"
    TWICE = "twice"
    DROP = "drop"
    """The connection ends here; the frame is not passed on."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes that are passed on together, and the names of the steps they are."""

    data: bytes
    steps: tuple[str, ...] = ()


class Talk(Protocol):
    """One connection's two directions, cut into frames; each ends with its stream."""

    def requests(self, source: Bytes) -> AsyncGenerator[Frame]:
        """What the process sends."""
        ...

    def answers(self, source: Bytes) -> AsyncGenerator[Frame]:
        """What the server sends."""
        ...


Witness = Callable[[str, "Link"], Awaitable[Verdict]]


class _Ended(Exception):  # noqa: N818 - how a pump says that its side is over
    """One direction is at its end; the other one ends with it."""


class Link:
    """The way from one process to one server. `cut` ends every connection and refuses new ones for a while."""

    def __init__(
        self, process: str, server: str, upstream_port: int, *, talk: Callable[[], Talk], witness: Witness
    ) -> None:
        self.process = process
        self.server = server
        self.port = free_port()
        self._upstream_port = upstream_port
        self._talk = talk
        self._witness = witness
        self._open: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self._refuse_until = 0.0

    async def open(self) -> None:
        """Listens from now on."""
        self._listener = await asyncio.start_server(self._serve, LOOPBACK, self.port, limit=_READ_LIMIT_BYTES)

    def close(self) -> None:
        """Listens no more and ends every connection."""
        if self._listener is not None:
            self._listener.close()
        self.cut(0)

    def cut(self, refuse_s: float) -> None:
        """Ends every connection at once, as a broken network does."""
        self._refuse_until = asyncio.get_running_loop().time() + refuse_s
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if asyncio.get_running_loop().time() >= self._refuse_until:
                await self._join(reader, writer)
        except OSError:
            pass  # the server is away, or either side has gone: what the other side sees is a closed connection
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(LOOPBACK, self._upstream_port, limit=_READ_LIMIT_BYTES)
        self._open.add(up_writer)
        talk = self._talk()
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(talk.requests(reader), up_writer))
                pumps.create_task(self._pump(talk.answers(up_reader), writer))
        except* (_Ended, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(up_writer)
            await _finish(up_writer)
            await _finish(writer)

    async def _pump(self, frames: AsyncGenerator[Frame], sink: asyncio.StreamWriter) -> None:
        async with contextlib.aclosing(frames):
            async for frame in frames:
                verdict = await self._judge(frame)
                if verdict is Verdict.DROP:
                    sink.transport.abort()
                    raise _Ended
                if sink.transport.is_closing():  # cut while the frame was held back
                    raise _Ended
                sink.write(frame.data)
                if verdict is Verdict.TWICE:
                    asyncio.get_running_loop().call_later(_AGAIN_S, _write_again, sink, frame.data)
                await sink.drain()
        raise _Ended

    async def _judge(self, frame: Frame) -> Verdict:
        verdict = Verdict.PASS
        for step in frame.steps:
            found = await self._witness(step, self)
            if found is Verdict.DROP:
                return found
            if found is Verdict.TWICE:
                verdict = found
        return verdict


def _write_again(sink: asyncio.StreamWriter, data: bytes) -> None:
    if not sink.transport.is_closing():
        sink.write(data)


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Sends what is still on its way, then closes; a connection that was aborted stays so."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            writer.close()
            await writer.wait_closed()
