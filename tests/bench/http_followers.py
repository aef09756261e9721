"""Open streams that read whatever comes: paths on stdin up to an empty line; each line then asks who heard a submit."""

import asyncio
import sys
from typing import cast

import uvloop

_NEWS = b"job.submitted.v1"


class Follower(asyncio.Protocol):
    """One stream. `heard`: it was told of a submit, and is open still."""

    def __init__(self, port: int, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        self.answered = asyncio.get_running_loop().create_future()
        self.heard = False
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(data.startswith(b"HTTP/1.1 200"))
        self.heard = self.heard or _NEWS in self._end + data
        self._end = data[-len(_NEWS) :]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.heard = False
        if not self.answered.done():
            self.answered.set_result(False)


async def main(port: int) -> None:
    """Connects a hundred at a time; ends with its stdin."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    followers: list[Follower] = []
    while path := (await lines.readline()).decode().strip():
        _, follower = await loop.create_connection(lambda path=path: Follower(port, path), "127.0.0.1", port)
        followers.append(follower)
        if len(followers) % 100 == 0:
            await asyncio.gather(*(one.answered for one in followers))
    refused = [one for one in followers if not await one.answered]
    print("connected" if not refused else f"{len(refused)} refused", flush=True)
    while await lines.readline():
        print(sum(one.heard for one in followers), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
