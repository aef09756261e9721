"""Requests over kept-alive connections as fast as they are answered: `python -m tests.bench.http_load`, a job on stdin.

Bare sockets and no HTTP library: what the generator itself costs is small, and is reported. One JSON line comes back.
"""

import asyncio
import itertools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop


class Load(msgspec.Struct, kw_only=True):
    """`requests` in turn, for so many seconds or `count` of them; each connection rests `pause_s` between two.

    `parts`: the seconds are told of in so many equal parts too.
    """

    port: int
    requests: list[str]
    connections: int = 16
    seconds: float = 1.0
    count: int = 0
    pause_s: float = 0.0
    parts: int = 1


class Part(msgspec.Struct, kw_only=True):
    """What was answered in one part of the time."""

    per_s: float
    p99_ms: float


class Answered(msgspec.Struct, kw_only=True):
    """What came back; times in milliseconds, `cpu_ms` of the generator for each request."""

    count: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    parts: list[Part]
    statuses: dict[int, int]
    job_ids: list[str]
    cpu_ms: float


def request(port: int, method: str, path: str, body: bytes = b"") -> str:
    """The bytes of one request, as text."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body.decode()}"


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(
        self, following: Callable[[], bytes | None], answered: Callable[[float, bytes], None], pause_s: float
    ) -> None:
        self._following = following
        self._answered = answered
        self._pause_s = pause_s
        self._read = b""
        self._needed = -1
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the server closed the connection"))

    def send(self) -> None:
        """The next request, or the end."""
        following = self._following()
        assert self._transport is not None
        if following is None:
            self.over.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(following)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._needed < 0:
            end = self._read.find(b"\r\n\r\n")
            if end < 0:
                return
            length = self._read[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._needed = end + 4 + int(length)
        if len(self._read) >= self._needed:
            self._answered(time.perf_counter() - self._sent_at, self._read)
            self._read, self._needed = b"", -1
            if self._pause_s:
                asyncio.get_running_loop().call_later(self._pause_s, self.send)
            else:
                self.send()


async def run(load: Load) -> Answered:
    """Sends until time or count is up and everything is answered."""
    delays: list[float] = []
    parts: list[list[float]] = [[] for _ in range(load.parts)]
    part_s = load.seconds / load.parts
    statuses: Counter[int] = Counter()
    ids: list[str] = []
    began = time.perf_counter()
    numbers = itertools.count(1)
    requests = itertools.cycle([text.encode() for text in load.requests])

    def following() -> bytes | None:
        number = next(numbers)
        is_over = time.perf_counter() - began > load.seconds or (load.count and number > load.count)
        return None if is_over else next(requests)

    def answered(delay: float, answer: bytes) -> None:
        delays.append(delay)
        if (part := int((time.perf_counter() - began) / part_s)) < load.parts:
            parts[part].append(delay)
        statuses[int(answer[9:12])] += 1
        _, found, rest = answer.partition(b'"job_id":"')
        if found:
            ids.append(rest[:36].decode())

    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(following, answered, load.pause_s), "127.0.0.1", load.port)
        for _ in range(load.connections)
    ]
    began = time.perf_counter()
    for place, (_, connection) in enumerate(made):
        loop.call_later(load.pause_s * place / len(made), connection.send)
    await asyncio.gather(*(connection.over for _, connection in made))
    took_s = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    delays.sort()
    return Answered(
        count=len(delays),
        per_s=len(delays) / took_s,
        p50_ms=_at(delays, 0.5),
        p95_ms=_at(delays, 0.95),
        p99_ms=_at(delays, 0.99),
        parts=[Part(per_s=len(part) / part_s, p99_ms=_at(sorted(part), 0.99)) for part in parts],
        statuses=dict(statuses),
        job_ids=ids,
        cpu_ms=(usage.ru_utime + usage.ru_stime) / max(1, len(delays)) * 1e3,
    )


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else 0.0


async def generate(load: Load) -> Answered:
    """The same in a process of its own. Raises AssertionError when anything but 200 came back."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.http_load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(load.seconds + 30):
            out, _ = await process.communicate(msgspec.json.encode(load))
    finally:
        if process.returncode is None:
            process.kill()
    answered = msgspec.json.decode(out, type=Answered)
    assert set(answered.statuses) == {200}, answered.statuses
    return answered


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Load))))))
