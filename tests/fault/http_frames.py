"""HTTP/1.1 cut into frames: the head of a request that changes something, the middle of its body, and its answer."""

import functools
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import Any, cast

from litestar import Litestar, Router

from services.gateway.inbound.http import admin, attempts, events, jobs, objects, story
from services.storage.handlers import Storage
from services.storage.inbound.http import make_app
from shared.settings import Secret
from tests.fault.links import Bytes, Frame

_CHANGING = frozenset({"POST", "PUT", "DELETE", "PATCH"})
_NO_BODY = frozenset({"204", "304"})
_PIECE_BYTES = 4096
Operation = tuple[str, str, re.Pattern[str]]
"""Its name, its method and the paths it serves."""


@functools.cache
def operations() -> dict[str, tuple[Operation, ...]]:
    """Server -> its operations that change something, taken from its routes."""
    gateway = [admin.ROUTER, attempts.ROUTER, events.ROUTER, jobs.ROUTER, objects.ROUTER, story.ROUTER]
    storage = make_app(cast("Storage", None), Secret("unused"), 1)
    return {"gateway": tuple(_operations(gateway)), "storage": tuple(_operations([storage]))}


def http_steps() -> list[str]:
    """`http:gateway:submit:received` and so on."""
    return [
        f"http:{server}:{name}:{when}"
        for server, known in operations().items()
        for name, _, _ in known
        for when in ("received", "mid-body", "answered")
    ]


def _operations(routers: Iterable[Router | Litestar]) -> Iterable[Operation]:
    for router in routers:
        for route in router.routes:
            for handler in cast("Any", route).route_handlers:
                for method in sorted(handler.http_methods & _CHANGING):
                    yield handler.handler_name, method, _paths(route.path)


def _paths(template: str) -> re.Pattern[str]:
    """`/api/{job_id:str}/cancel` as a pattern."""
    parts = re.split(r"\{[^}:]*:([a-z]+)\}", template)
    pattern = "".join(
        re.escape(part) if number % 2 == 0 else (".+" if part == "path" else "[^/]+")
        for number, part in enumerate(parts)
    )
    return re.compile(pattern)


class HttpTalk:
    """One connection to `server`, kept alive over any number of requests."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._asked: deque[tuple[str, str]] = deque()
        """Method and operation of the requests whose answers have not begun."""

    async def requests(self, source: Bytes) -> AsyncGenerator[Frame]:
        """Heads and pieces of bodies."""
        while head := await _head(source):
            method, path = head.split(b" ", 2)[:2]
            name = self._operation(method.decode(), path.decode().partition("?")[0])
            self._asked.append((method.decode(), name))
            yield Frame(head, self._steps(name, "received"))
            length = _length(head)
            half, passed, told = (length or 0) // 2, 0, False
            async for piece in _body(source, head, length):
                passed += len(piece)
                middle = not told and passed > half
                told = told or middle
                yield Frame(piece, self._steps(name, "mid-body") if middle else ())

    async def answers(self, source: Bytes) -> AsyncGenerator[Frame]:
        """Heads and pieces of bodies; an interim answer (100) is none yet."""
        while head := await _head(source):
            status = head.split(b" ", 2)[1].decode()
            if status.startswith("1"):
                yield Frame(head)
                continue
            method, name = self._asked.popleft() if self._asked else ("", "")
            yield Frame(head, self._steps(name, "answered"))
            if method == "HEAD" or status in _NO_BODY:
                continue
            length = _length(head)
            ends_with_connection = length is None and not _is_chunked(head)
            async for piece in _rest(source) if ends_with_connection else _body(source, head, length):
                yield Frame(piece)

    def _operation(self, method: str, path: str) -> str:
        known = operations()[self._server]
        return next((name for name, verb, paths in known if verb == method and paths.fullmatch(path)), "")

    def _steps(self, name: str, when: str) -> tuple[str, ...]:
        return (f"http:{self._server}:{name}:{when}",) if name else ()


async def _head(source: Bytes) -> bytes:
    """Everything up to the empty line; nothing at the end of the stream."""
    lines: list[bytes] = []
    while line := await source.readline():
        lines.append(line)
        if line in {b"\r\n", b"\n"}:
            return b"".join(lines)
    return b""


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?im)^" + name + rb":[ \t]*(.*?)[ \t]*\r?$", head)
    return found.group(1) if found else None


def _length(head: bytes) -> int | None:
    value = _header(head, b"content-length")
    return int(value) if value is not None else None


def _is_chunked(head: bytes) -> bool:
    return (_header(head, b"transfer-encoding") or b"").lower() == b"chunked"


async def _body(source: Bytes, head: bytes, length: int | None) -> AsyncGenerator[bytes]:
    if _is_chunked(head):
        while True:
            line = await source.readline()
            size = int(line.split(b";")[0], 16)
            yield line + await source.readexactly(size + 2)
            if size == 0:
                return
    left = length or 0
    while left and (piece := await source.read(min(left, _PIECE_BYTES))):
        left -= len(piece)
        yield piece


async def _rest(source: Bytes) -> AsyncGenerator[bytes]:
    while piece := await source.read(_PIECE_BYTES):
        yield piece
