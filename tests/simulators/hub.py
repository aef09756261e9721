"""A Hugging Face Hub on loopback, written from its documented HTTP protocol: repositories, preupload, LFS, commits.

Standard library only, so that tests of any environment may start it. Large files come by LFS, in parts above
`part_bytes`; what a commit names must have been sent before. `refuse` answers a request with a status instead.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SimulatedTokenOfTheHub"
OWNER = "ann"


@dataclass
class Repository:
    """One model repository: paths to contents, and every commit as the paths it changed."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    large: set[str] = field(default_factory=set[str])
    """Paths that came by LFS."""
    commits: list[list[str]] = field(default_factory=list[list[str]])


class Hub:
    """The server and what it has. Start it with `with Hub() as hub:`."""

    def __init__(self, part_bytes: int = 1024 * 1024) -> None:
        self.part_bytes = part_bytes
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.parts_received = 0
        self.refuse: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda _method, _path: None
        self.drop_answer: Callable[[str, str], bool] = lambda _method, _path: False
        """Do what was asked, then end the connection without an answer."""
        self._parts: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON and headers for one request that was let through."""
        with self._lock:
            if path.startswith("/lfs/"):
                return self._lfs_object(method, path, body)
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}, {}
            if path == "/api/whoami-v2":
                return 200, {"name": OWNER, "type": "user", "orgs": []}, {}
            if path.endswith(".git/info/lfs/objects/batch"):
                return self._batch(path.removesuffix(".git/info/lfs/objects/batch").strip("/"), json.loads(body))
            return self._repository(path, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        url = {"url": f"{self.url}/{name}", "name": name}
        if name.partition("/")[0] != OWNER:
            return 403, {"error": f"You don't have the rights to create a model under {name}"}, {}
        if name in self.repositories:
            return 409, {**url, "error": "You already created this model repo"}, {}
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return 200, url, {}

    def _repository(self, path: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        parts = path.removeprefix("/api/models/").split("/")
        name, act = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "info"
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if act == "preupload":
            return 200, {"files": [self._mode(repository, file) for file in json.loads(body)["files"]]}, {}
        if act == "commit":
            return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        sha = hashlib.sha1(str(len(repository.commits)).encode(), usedforsecurity=False).hexdigest()
        return 200, {"id": name, "sha": sha, "private": repository.private, "siblings": []}, {}

    def _mode(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        large = path.endswith((".safetensors", ".bin", ".png", ".pt"))
        content = repository.files.get(path)
        oid = None if content is None else _oid(content, large=large)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _batch(self, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return 200, {"transfer": "multipart", "objects": [self._actions(each) for each in asked["objects"]]}, {}

    def _actions(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.objects:
            return wanted
        place = f"{self.url}/lfs/{oid}"
        verify = {"href": f"{place}/verify"}
        if size <= self.part_bytes:
            return {**wanted, "actions": {"upload": {"href": place}, "verify": verify}}
        count = -(-size // self.part_bytes)
        header = {str(number): f"{place}/part/{number}" for number in range(1, count + 1)}
        upload = {"href": f"{place}/complete", "header": {"chunk_size": str(self.part_bytes), **header}}
        return {**wanted, "actions": {"upload": upload, "verify": verify}}

    def _lfs_object(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        _, _, oid, *rest = path.split("/")
        match [method, *rest]:
            case ["PUT"]:
                return self._keep(oid, body)
            case ["PUT", "part", number]:
                self._parts[oid, int(number)] = body
                self.parts_received += 1
                return 200, {}, {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
            case ["POST", "complete"]:
                numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
                return self._keep(oid, b"".join(self._parts[oid, number] for number in numbers))
            case ["POST", "verify"] if oid in self.objects:
                return 200, {}, {}
            case _:
                return 404, {"error": "no such object"}, {}

    def _keep(self, oid: str, content: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {"error": "the content has another digest"}, {}
        self.objects[oid] = content
        return 200, {}, {}

    def _commit(
        self, name: str, repository: Repository, lines: list[dict[str, Any]]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        changed: dict[str, tuple[bytes, bool]] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was never uploaded"}, {}
                changed[value["path"]] = (self.objects[value["oid"]], True)
            else:
                changed[value["path"]] = (base64.b64decode(value["content"]), False)
        for path, (content, large) in changed.items():
            repository.files[path] = content
            (repository.large.add if large else repository.large.discard)(path)
        repository.commits.append(sorted(changed))
        oid = hashlib.sha1(repr(repository.commits).encode(), usedforsecurity=False).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}, {}


def _oid(content: bytes, *, large: bool) -> str:
    """The id that a file has in the repository: SHA-256 of a large one, git's blob id of another."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def serve(self) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        is_signed = path.startswith("/lfs/") and not path.endswith("/verify")
        if not is_signed:
            self.hub.tokens.add(token)
        refused = self.hub.refuse(self.command, path)
        if refused is not None:
            self.reply(refused[0], {"error": f"simulated {refused[0]}"}, refused[1])
        elif not is_signed and token != TOKEN:
            self.reply(401, {"error": "Invalid username or password."}, {})
        else:
            answer = self.hub.answer(self.command, path, body)
            if self.hub.drop_answer(self.command, path):
                self.close_connection = True
            else:
                self.reply(*answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, status: int, data: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = serve  # noqa: N815 - the names http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Says nothing."""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})
