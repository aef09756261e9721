"""Ollama's blob, create, show, list and delete routes, as its documents and its source of August 2026 have them.

No package carries the server, so this is not held to it; the `ollama` client is driven against it instead
(tests/vendors/test_ollama.py). It converts nothing: it checks what the server checks, in the same order, and
tells an error before the first line by status and one after it inside a stream of status 200.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

CONVERTED = ("llama", "gemma2")
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(:[A-Za-z0-9][\w.-]*)?")
Line = dict[str, Any]


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, reason: str, status: int = 500) -> None:
        super().__init__(reason)
        self.status = status


def whole(name: str) -> str:
    """The name with its tag."""
    return name if ":" in name else f"{name}:latest"


@dataclass
class OllamaSimulator:
    """One server on loopback."""

    models: dict[str, Line] = field(default_factory=dict[str, Line])
    """Name with tag -> {info: model_info, parent, adapters}."""
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    breaks_with: str = ""
    """An error that conversion runs into, after its first line."""
    falls_silent: bool = False
    """The stream of `create` ends before success."""
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def __post_init__(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"simulator": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add_base(self, name: str, architecture: str, *, width: int, layers: int) -> None:
        """A base model as `ollama pull` leaves it."""
        sizes = {f"{architecture}.embedding_length": width, f"{architecture}.block_count": layers}
        self.models[whole(name)] = {"info": {"general.architecture": architecture, **sizes}, "parent": ""}

    def create(self, body: Line) -> Iterator[Line]:
        """The lines of `POST /api/create`; raises _Refused for what is found wrong."""
        name = str(body.get("model") or body.get("name") or "")
        if _NAME.fullmatch(name) is None:
            raise _Refused("invalid model name", 400)
        base = str(body.get("from") or "")
        if not base:
            raise _Refused("neither 'from' or 'files' was specified", 400)
        if whole(base) not in self.models:
            yield {"status": "pulling manifest"}
            raise _Refused("pull model manifest: file does not exist")
        adapters = cast("dict[str, str]", body.get("adapters") or {})
        yield from self._convert(adapters, str(self.models[whole(base)]["info"]["general.architecture"]))
        if self.falls_silent:
            return
        yield {"status": f"creating new layer sha256:{'0' * 64}"}
        yield {"status": "writing manifest"}
        info = self.models[whole(base)]["info"]
        self.models[whole(name)] = {"info": info, "parent": whole(base), "adapters": adapters}
        yield {"status": "success"}

    def _convert(self, adapters: dict[str, str], architecture: str) -> Iterator[Line]:
        for path, digest in adapters.items():
            if path.startswith("/") or ".." in path.split("/"):
                raise _Refused(f"file path must be relative: {path}", 400)
            if digest.replace("-", ":") not in self.blobs:
                raise _Refused(f"link {digest} {path}: no such file or directory", 400)
        if not adapters or any(path.endswith(".gguf") for path in adapters):
            return
        if not any(path.endswith(".safetensors") for path in adapters):
            raise _Refused("unknown type", 400)
        yield {"status": "converting adapter"}
        if "adapter_config.json" not in adapters:
            raise _Refused("open adapter_config.json: no such file or directory")
        if architecture not in CONVERTED:
            raise _Refused("unsupported architecture")
        if self.breaks_with:
            raise _Refused(self.breaks_with)

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, Line | None]:
        """Status and body of every route but `create`; None sends no body."""
        if path.startswith("/api/blobs/"):
            return self._blob(method, path.removeprefix("/api/blobs/"), body)
        if (method, path) == ("GET", "/api/version"):
            return 200, {"version": "0.22.0"}
        if (method, path) == ("GET", "/api/tags"):
            return 200, {"models": [{"name": each, "model": each} for each in sorted(self.models)]}
        if (method, path) not in {("POST", "/api/show"), ("DELETE", "/api/delete")}:
            return 404, {"error": "404 page not found"}
        return self._of_model(method, json.loads(body))

    def _of_model(self, method: str, given: Line) -> tuple[int, Line | None]:
        name = whole(str(given.get("model") or given.get("name") or ""))
        known = self.models.get(name)
        if known is None:
            return 404, {"error": f"model '{name.removesuffix(':latest')}' not found"}
        if method == "DELETE":
            del self.models[name]
            return 200, None
        return 200, {"details": {"parent_model": known["parent"]}, "model_info": known["info"]}

    def _blob(self, method: str, digest: str, body: bytes) -> tuple[int, Line | None]:
        if _DIGEST.fullmatch(digest) is None:
            return 400, {"error": "invalid digest format"}
        if method == "HEAD":
            return (200 if digest in self.blobs else 404), None
        if digest in self.blobs:
            return 200, None
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != digest:
            return 400, {"error": f'digest mismatch, expected "{digest}", got "{found}"'}
        self.blobs[digest] = body
        return 201, None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    simulator: OllamaSimulator

    def _serve(self) -> None:
        self.simulator.asked.append((self.command, self.path))
        body = self._body()
        if (self.command, self.path) == ("POST", "/api/create"):
            self._stream(self.simulator.create(json.loads(body)))
            return
        self._whole(*self.simulator.reply(self.command, self.path, body))

    do_GET = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the names http.server calls

    def _body(self) -> bytes:
        """With its length or in chunks: the client sends blobs as a generator."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = bytearray()
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(content)

    def _whole(self, status: int, answer: Line | None) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _stream(self, lines: Iterator[Line]) -> None:
        begun = False
        try:
            for line in lines:
                if not begun:
                    begun = True
                    self.send_response(200)
                    self.send_header("Content-Type", "application/x-ndjson")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                self._chunk(line)
        except _Refused as refused:
            if not begun:
                self._whole(refused.status, {"error": str(refused)})
                return
            self._chunk({"error": str(refused)})
        if begun:
            self.wfile.write(b"0\r\n\r\n")
        else:  # fell silent before the first line
            self._whole(200, None)

    def _chunk(self, line: Line) -> None:
        content = json.dumps(line).encode() + b"\n"
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Says nothing."""
