"""A loopback HTTP server whose routes are Python functions: the ground that the vendors' simulators stand on."""

import json
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from shared.clock import Clock, utc_now

_LOOK_S = 0.05
"""How often a held answer looks whether anybody still waits for it."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on with 0 s: closing sends RST."""


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; an empty one is an empty object."""
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Answer:
    """What goes back: JSON unless `body` or `parts` is given."""

    status: int = 200
    content: Any = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    parts: Iterable[bytes] | None = None
    """Sent one by one as they come (chunked); the iterable may wait. Its `close` is called when nobody listens."""
    drop: Literal["reset", "close"] | None = None
    """Nothing goes back: the connection is reset, or closed in good order."""
    hold: threading.Event | None = None
    """The answer is kept back until this is set, the server ends, or whoever asked goes away."""


class Loopback:
    """Serves `route` on a free port of 127.0.0.1 until the end of the `with` block; remembers every call."""

    def __init__(self, route: Callable[[Call], Answer], clock: Clock = utc_now) -> None:
        """`clock` is what the Date header shows."""
        self.calls: list[Call] = []
        self.changed = threading.Condition(threading.RLock())
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self, route, clock))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_until(self, fact: Callable[[], bool], what: str, limit_s: float = 120) -> None:
        """Returns when the fact holds, looked at after every request; AssertionError names what never came."""
        with self.changed:
            assert self.changed.wait_for(fact, limit_s), f"not within {limit_s:.0f} s: {what}"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """A connection that is to be reset must not say goodbye first."""
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no fault of ours to be told of."""
        if not isinstance(sys.exc_info()[1], ConnectionResetError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def answer(self, call: Call) -> Answer:
        raise NotImplementedError

    def now(self) -> datetime:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002 - the library's signature
        return format_datetime(self.now(), usegmt=True)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, unquote(parts.path), query, headers, body)
        with self.loopback.changed:
            self.loopback.calls.append(call)
            self.loopback.changed.notify_all()
        answer = self.answer(call)
        with self.loopback.changed:
            self.loopback.changed.notify_all()
        try:
            if answer.hold is not None and not self._held(answer.hold):
                self.close_connection = True
            elif answer.drop is not None:
                self._drop(answer.drop)
            elif answer.parts is not None:
                self._stream(answer, answer.parts)
            else:
                self._send(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked has gone; there is nobody to tell

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names are the library's

    def _send(self, answer: Answer) -> None:
        content = answer.body if answer.body is not None else json.dumps(answer.content).encode()
        kind = {"Content-Type": "application/json"} if answer.body is None else {}
        self._head(answer.status, {**kind, **answer.headers, "Content-Length": str(len(content))})
        if answer.status != 204:
            self.wfile.write(content)

    def _stream(self, answer: Answer, parts: Iterable[bytes]) -> None:
        self._head(answer.status, {**answer.headers, "Transfer-Encoding": "chunked"})
        try:
            for part in parts:
                if part:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                elif self._nobody_waits():
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")
        finally:
            if callable(close := getattr(parts, "close", None)):
                close()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _drop(self, how: Literal["reset", "close"]) -> None:
        self.close_connection = True
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _held(self, until: threading.Event) -> bool:
        """Whether somebody still waits for the answer once it may go."""
        while not until.wait(_LOOK_S):
            if self.loopback.ended.is_set() or self._nobody_waits():
                return False
        return True

    def _nobody_waits(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""


def _handler(loopback: Loopback, route: Callable[[Call], Answer], clock: Clock) -> type[_Handler]:
    class Handler(_Handler):
        def answer(self, call: Call) -> Answer:
            return route(call)

        def now(self) -> datetime:
            return clock()

    Handler.loopback = loopback
    return Handler
