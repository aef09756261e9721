# pyright: basic
"""A real HTTP peer written from the contract: takes reports and uploads, serves files, and can misbehave on request."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import msgspec

from deploy.embedded.process import free_port
from shared.contracts.run import ReportAck, ReportLine, TrainerCommand

TOKEN = "attempt-token-3f9c1d77e2"


@dataclass
class Received:
    """What has arrived. `repeats` counts lines that came more than once (harmless resends)."""

    lines: dict[int, ReportLine] = field(default_factory=dict)
    repeats: int = 0
    uploads: dict[str, bytes] = field(default_factory=dict)
    upload_order: list[str] = field(default_factory=list)
    line_count_at_upload: dict[str, int] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)

    @property
    def ack(self) -> int:
        seq = 0
        while seq + 1 in self.lines:
            seq += 1
        return seq

    def of_type(self, name: str) -> list[dict[str, Any]]:
        return [line.data for _, line in sorted(self.lines.items()) if line.type == name]

    @property
    def types(self) -> list[str]:
        return [line.type for _, line in sorted(self.lines.items())]


class Receiver:
    """Start, stop and restart on one port; `answer_reports` decides each report's status before it is stored."""

    def __init__(self) -> None:
        self.received = Received()
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.open = False
        """Files are served without a token."""
        self.asked: list[Any] = []
        """Every request for a file."""
        self.token = TOKEN
        self.answer_reports: Callable[[list[ReportLine]], int] = lambda _lines: 200
        self.answer_uploads: Callable[[str], int] = lambda _path: 200
        self.conflict = b'{"code": "attempt_superseded"}'
        """The body of a 409."""
        self.commands: list[TrainerCommand] = []
        self.delay_s = 0.0
        self.changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # one request per connection, so that a stop is a real outage

            def log_message(self, *_arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                receiver.take_reports(self)

            def do_PUT(self) -> None:
                receiver.take_upload(self)

            def do_GET(self) -> None:
                receiver.serve(self)

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_until(self, condition: Callable[[Received], bool], deadline_s: float = 120) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.received), deadline_s), self.received.types

    def take_reports(self, request: Any) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        time.sleep(self.delay_s)
        lines = [msgspec.json.decode(line, type=ReportLine) for line in body.splitlines()]
        with self.changed:
            status = 200 if self._authorised(request) else 401
            status = self.answer_reports(lines) if status == 200 else status
            self.received.batch_sizes.append(len(lines))
            if status == 200:
                for line in lines:
                    self.received.repeats += line.seq in self.received.lines
                    self.received.lines.setdefault(line.seq, line)
            answer = ReportAck(ack=self.received.ack, commands=self.commands)
            self.commands = []
            self.changed.notify_all()
        self._reply(request, status, self.conflict if status == 409 else msgspec.json.encode(answer))

    def take_upload(self, request: Any) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        path = unquote(request.path)
        good = hashlib.sha256(body).hexdigest() == request.headers["X-Content-SHA256"]
        with self.changed:
            authorised = self._authorised(request) and request.headers["X-Upload-Token"] == self.token
            status = self.answer_uploads(path) if authorised and good else 401 if good else 422
            if status == 200:
                self.received.uploads[path] = body
                self.received.upload_order.append(path)
                self.received.line_count_at_upload[path] = len(self.received.lines)
            self.changed.notify_all()
        self._reply(request, status, b"{}")

    def serve(self, request: Any) -> None:
        self.asked.append(request)
        path = unquote(request.path).partition("?")[0]
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
            return
        content = self.files.get(path)
        status = 404 if content is None else 200 if self.open or self._authorised(request) else 401
        self._reply(request, status, content or json.dumps({"detail": "not here"}).encode())

    def _authorised(self, request: Any) -> bool:
        return request.headers["Authorization"] == f"Bearer {self.token}"

    @staticmethod
    def _reply(request: Any, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
