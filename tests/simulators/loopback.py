"""A loopback HTTP server whose routes are Python functions: the ground that the vendors' simulators stand on."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit


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
    """What goes back: JSON unless `body` is given."""

    status: int = 200
    content: Any = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


class Loopback:
    """Serves `route` on a free port of 127.0.0.1 until the end of the `with` block; remembers every call."""

    def __init__(self, route: Callable[[Call], Answer]) -> None:
        self.calls: list[Call] = []
        self.changed = threading.Condition(threading.RLock())
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
                pass

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, unquote(parts.path), query, headers, body)
                with loopback.changed:
                    loopback.calls.append(call)
                    loopback.changed.notify_all()
                answer = route(call)
                with loopback.changed:
                    loopback.changed.notify_all()
                content = answer.body if answer.body is not None else json.dumps(answer.content).encode()
                try:
                    self.send_response(answer.status)
                    kind = {"Content-Type": "application/json"} if answer.body is None else {}
                    for name, value in {**kind, **answer.headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if answer.status != 204:
                        self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # whoever asked has gone; there is nobody to tell

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names are the library's

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_until(self, fact: Callable[[], bool], what: str, limit_s: float = 120) -> None:
        """Returns when the fact holds, looked at after every request; AssertionError names what never came."""
        with self.changed:
            assert self.changed.wait_for(fact, limit_s), f"not within {limit_s:.0f} s: {what}"
