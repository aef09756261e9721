"""vLLM 0.32's model list, LoRA routes and completions, as measured: statuses, bodies, and what it forgets.

Held to the real server by tests/contract/test_vllm_routes.py. It loads nothing: an answer is chance drawn from the
prompt and from what a prefix cache would know of the adapter, which is its name, its path and its weights at load time.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = tuple[int, Any]
"""Status and body; text is sent as it is, everything else as JSON."""
_ENGINE = "Call to add_lora method failed: Worker failed with error '{}', please check the stack trace above"
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@dataclass
class VllmSimulator:
    """One server process on loopback. Change a member and the next request sees it."""

    base_path: str
    key: str = ""
    served_name: str = "base"
    max_lora_rank: int = 16
    allows_updates: bool = True
    engine_runs: bool = True
    adapters: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Name -> path and the digest of the weights when they were loaded."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])
    """Method, path and body of every request that was let in."""
    _cache: dict[tuple[str, str, str], str] = field(default_factory=dict[tuple[str, str, str], str])

    def __post_init__(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def restart(self) -> None:
        """A new process: nothing is loaded and nothing is cached."""
        self.adapters.clear()
        self._cache.clear()

    # ---- routes ------------------------------------------------------------------------------------------------------

    def reply(self, method: str, path: str, key: str, media: str, body: bytes) -> Reply:
        """What the server answers."""
        if path.startswith("/v1/") and self.key and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        routes: dict[tuple[str, str], Callable[[Any], Reply]] = {
            ("GET", "/health"): lambda _: (200 if self.engine_runs else 503, ""),
            ("GET", "/version"): lambda _: (200, {"version": "0.32.0"}),
            ("GET", "/v1/models"): lambda _: (200, {"object": "list", "data": self._cards()}),
            ("POST", "/v1/completions"): self._complete,
        }
        if self.allows_updates:
            routes |= {("POST", "/v1/load_lora_adapter"): self._load, ("POST", "/v1/unload_lora_adapter"): self._unload}
        route = routes.get((method, path))
        if route is None:
            known = any(path == other for _, other in routes)
            return (405, {"detail": "Method Not Allowed"}) if known else (404, {"detail": "Not Found"})
        if method == "GET":
            self.asked.append((method, path, None))
            return route(None)
        if media.partition(";")[0] != "application/json":
            said = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            return _error(400, "Bad Request", said)
        try:
            read: Any = json.loads(body)
        except ValueError:
            return _error(400, "Bad Request", "1 validation error:\n  {'type': 'json_invalid'}")
        self.asked.append((method, path, read))
        return route(read)

    def _cards(self) -> list[dict[str, Any]]:
        base = {"id": self.served_name, "object": "model", "root": self.base_path, "parent": None}
        loaded = [
            {"id": name, "object": "model", "root": path, "parent": self.served_name}
            for name, (path, _) in self.adapters.items()
        ]
        return [base, *loaded]

    def _load(self, body: dict[str, Any]) -> Reply:
        name, path = body.get("lora_name"), body.get("lora_path")
        if name is None or path is None:
            return _error(400, "Bad Request", "1 validation error:\n  {'type': 'missing', 'msg': 'Field required'}")
        if said := self._wrong_name(name, path, in_place=bool(body.get("load_inplace"))):
            return _error(400, "InvalidUserInput", said)
        if not self.engine_runs:
            said = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            return _error(500, "InternalServerError", said)
        if not (Path(path) / "adapter_config.json").is_file():
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for <path>")
        if refusal := self._refusal(Path(path)):
            return _error(500, "InternalServerError", _ENGINE.format(refusal))
        weights = (Path(path) / "adapter_model.safetensors").read_bytes()
        self.adapters[name] = (path, hashlib.sha256(weights).hexdigest())
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _wrong_name(self, name: str, path: str, *, in_place: bool) -> str:
        if not name or not path:
            return "Both 'lora_name' and 'lora_path' must be provided."
        if name == self.served_name:
            return f"The lora adapter '{name}' conflicts with a served base model."
        if name in self.adapters and not in_place:
            return (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
        return ""

    def _refusal(self, folder: Path) -> str:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        content = (folder / "adapter_model.safetensors").read_bytes()
        header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        strange = [name for name in header if name != "__metadata__" and name.split(".")[-3] not in _MODULES]
        ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
        whole = config.get("modules_to_save")
        problems: dict[str, bool] = {
            "vLLM does not yet support DoRA.": bool(config.get("use_dora")),
            f"vLLM only supports modules_to_save being either None or [...]. Unsupported: {whole}": bool(whole),
            f"LoRA rank {max(ranks)} is greater than max_lora_rank {self.max_lora_rank}.": max(ranks)
            > self.max_lora_rank,
            "Adapter bias is not supported.": config.get("bias", "none") != "none",
            f"While loading <path>, expected target modules in {_MODULES} but received {strange}.": bool(strange),
        }
        return next((said for said, holds in problems.items() if holds), "")

    def _unload(self, body: dict[str, Any]) -> Reply:
        name = str(body.get("lora_name") or "")
        if name not in self.adapters:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, body: dict[str, Any]) -> Reply:
        model, prompt = str(body["model"]), str(body["prompt"])
        if model != self.served_name and model not in self.adapters:
            said = f"The model `{model}` does not exist. Valid aliases: {self.served_name}."
            return _error(404, "NotFoundError", said)
        path, weights = self.adapters.get(model, ("", ""))
        kept = self._cache.setdefault((model, path, prompt), weights)
        text = hashlib.sha256(f"{prompt}\0{kept}\0{weights}".encode()).hexdigest()
        return 200, {"object": "text_completion", "model": model, "choices": [{"index": 0, "text": text}]}


def _error(status: int, type_: str, message: str) -> Reply:
    return status, {"error": {"message": message, "type": type_, "param": None, "code": status}}


def _handler(simulator: VllmSimulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key, media = self.headers.get("Authorization", ""), self.headers.get("Content-Type", "")
            status, answer = simulator.reply(self.command, self.path, key, media, body)
            is_text = isinstance(answer, str)
            content = (answer if is_text else json.dumps(answer)).encode()
            self.send_response(status)
            if not is_text:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 - the names http.server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Says nothing."""

    return Handler
