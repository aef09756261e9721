"""A real HTTP server on loopback that answers as a test says, and the CLI pointed at it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.cli.entry import main


@dataclass
class Asked:
    """One request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What to send back; with `cut_after`, the connection ends after that many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut_after: int | None = None


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def a_problem(code: str, detail: str, status: int, **members: Any) -> Answer:
    return as_json({"code": code, "title": f"Title of {code}", "detail": detail, "status": status, **members}, status)


def a_stream(*frames: str, cut: bool = False) -> Answer:
    """Server-sent events; `cut` ends the connection as a dropped link would."""
    body = "".join(f"{frame}\n\n" for frame in frames).encode()
    return Answer(200, body, {"Content-Type": "text/event-stream"}, cut_after=len(body) if cut else None)


def a_job(job_id: str, status: str = "running", **changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "job_id": job_id,
        "status": status,
        "provider": "local",
        "config_name": None,
        "created_at": "2026-11-22T01:02:03.000004+00:00",
        "cost_usd": None,
        "error_message": None,
        "is_terminal": status in {"completed", "failed", "cancelled"},
        "duration_seconds": None,
        "metadata": {},
    }
    return {**job, **changes}


class Server:
    """Answers each path from a list of answers; the last one is repeated."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[str, list[Answer | Callable[[Asked], Answer]]] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def on(self, place: str, *answers: Answer | Callable[[Asked], Answer]) -> None:
        """Says what `GET /path` is answered with, one answer after the other."""
        self._answers[place] = list(answers)

    def jobs(self, *jobs: dict[str, Any]) -> None:
        self.on("GET /api/cloud/jobs", as_json({"jobs": jobs, "total": len(jobs)}))

    def requests(self, place: str) -> list[Asked]:
        return [asked for asked in self.asked if f"{asked.method} {asked.path}" == place]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        left = self._answers.get(f"{asked.method} {asked.path}")
        if not left:
            return a_problem("not_found", f"nothing at {asked.path}", 404)
        chosen = left.pop(0) if len(left) > 1 else left[0]
        return chosen if isinstance(chosen, Answer) else chosen(asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                answer = server.answer(Asked(self.command, parts.path, query, dict(self.headers.items()), body))
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                extra = 1000 if answer.cut_after is not None else 0
                self.send_header("Content-Length", str(len(answer.body) + extra))
                self.end_headers()
                self.wfile.write(answer.body[: answer.cut_after])
                self.close_connection = True

            do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the names http.server calls

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                """Says nothing."""

        return Handler


@dataclass
class Ended:
    """How one run of the CLI ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout, which must be one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("ps", "--json")`: the CLI against the server, its pauses shortened, stdout and stderr kept apart."""
    monkeypatch.setenv("TUNEWRIGHT_URL", server.url)
    monkeypatch.setenv("TUNEWRIGHT_DATA_DIR", str(tmp_path / "no-data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("TUNEWRIGHT_DATABASE_URL", raising=False)
    monkeypatch.setattr("services.cli.gateway.RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("services.cli.following.RECONNECT_PAUSES_S", (0.0,) * 5)
    monkeypatch.setattr("services.cli.following.POLL_S", 0.0)

    def invoke(*arguments: str) -> Ended:
        code = main(arguments)
        told = capsys.readouterr()
        return Ended(code, told.out, told.err)

    return invoke
