"""Replicate's API on loopback: account, models, trainings, predictions, files, hardware, signed webhooks, and its bill.

Runs are moved by the test (`begin`, `finish`, `abort` …) or by a real Cog server (`tests/simulators/replicate_cog.py`).
Words, shapes and rules are those of Replicate's OpenAPI document and pages as of August 2026.
"""

import base64
import email.parser
import email.policy
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Literal

import httpx

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

KEY = "r8_test_key_5d1f"
OWNER = "acme"
TRAINER = f"{OWNER}/trainer"
DESTINATION = f"{OWNER}/loras"
FINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
PRICES_MICRO_USD_PER_HOUR = {"gpu-h100": 5_490_000, "gpu-h100-2x": 10_980_000, "gpu-l40s": 3_510_000}
UPLOAD_LIMIT_BYTES = 100 * 1024 * 1024
_SECRET_INPUTS = frozenset({"token"})
_TRIES = 6
"""Of a terminal webhook; the others are sent once."""

Kind = Literal["trainings", "predictions"]


@dataclass
class Model:
    """One model; its trainings run on its hardware."""

    hardware: str = "gpu-h100"
    versions: list[str] = field(default_factory=list[str])
    """Newest first."""


@dataclass
class Run:
    """One training or prediction."""

    id: str
    kind: Kind
    model: str
    version: str
    input: dict[str, Any]
    created: datetime
    webhook: str | None = None
    events: tuple[str, ...] = ("output", "completed")
    status: str = "starting"
    started: datetime | None = None
    completed: datetime | None = None
    logs: str = ""
    error: str | None = None
    output: Any = None
    without_metrics: bool = False
    data_removed: bool = False
    cancel_after: str | None = None

    @property
    def label(self) -> str:
        """What we called it."""
        return str(self.input.get("label", ""))


@dataclass(frozen=True)
class Hook:
    """One webhook as it was sent."""

    url: str
    headers: dict[str, str]
    body: bytes


def post(hook: Hook) -> int:
    """Sends a webhook over HTTP; the status, 0 for no answer."""
    try:
        return httpx.post(hook.url, headers=hook.headers, content=hook.body, timeout=10).status_code
    except httpx.HTTPError:
        return 0


class Replicate(Simulator):
    """One account."""

    def __init__(self, clock: Clock = utc_now, send: Callable[[Hook], int] = post) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.runs: dict[str, Run] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.models = {TRAINER: Model(versions=[secrets.token_hex(32)]), DESTINATION: Model()}
        self.signing = [new_secret()]
        """Newest first; a webhook is signed by each of them, as during a rotation."""
        self.page_size = 100
        self.copies = 1
        """How often each webhook is sent; more than once is what documents call at least once."""
        self.hook_pause_s = 0.05
        """Before the first repeat of a webhook that was not taken; doubles."""
        self.hooks: list[tuple[Hook, int]] = []
        """What was sent, and the status it was answered with."""
        self.on_create: Callable[[Run], None] | None = None
        self.on_cancel: Callable[[Run], None] | None = None
        """In place of an end at once: whoever drives the run ends it."""
        self.on_told: Callable[[Call], None] | None = None
        """Takes what a container tells at /cog/{id}."""
        self._send = send
        self._sending: list[threading.Thread] = []
        self._numbers = count(1)

    @property
    def api_url(self) -> str:
        """The base address, as Replicate's own with /v1."""
        return f"{self.url}/v1"

    def is_create(self, call: Call) -> bool:
        return call.method == "POST" and call.path.rsplit("/", 1)[-1] in {"trainings", "predictions"}

    def refusal(self, status: int) -> Answer:
        if status == 429:
            return Answer(429, {"detail": "Request was throttled. Expected available in 1 second."})
        return Answer(status, {"title": "simulated", "detail": f"simulated {status}", "status": status})

    # ---- what happens to runs ----------------------------------------------------------------------------------------

    def of(self, attempt_hex: str) -> list[Run]:
        """Every run whose label holds this, oldest first."""
        return [run for run in self.runs.values() if attempt_hex in run.label]

    def begin(self, run: Run) -> None:
        """It leaves the queue: from now on it costs."""
        with self.changed:
            if run.status != "starting":
                return
            run.status, run.started = "processing", self.clock()
            price = PRICES_MICRO_USD_PER_HOUR[self.models[run.model].hardware]
            self.bill.start(run.id, run.label, price)
        self.tell(run, "start")

    def finish(self, run: Run, *, error: str | None = None, output: Any = None) -> None:
        """Its code came to its end, well or with an error."""
        self._end(run, "failed" if error is not None else "succeeded", error=error, output=output)

    def abort(self, run: Run) -> None:
        """Its deadline passed before it began, which is free."""
        self._end(run, "aborted")

    def interrupt(self, run: Run) -> None:
        """Its machine died."""
        self._end(run, "failed", error="Prediction interrupted; please retry (code: PA)")

    def cancelled(self, run: Run) -> None:
        """It has ended by somebody's wish."""
        self._end(run, "canceled")

    def remove_data(self, run: Run) -> None:
        """An hour has passed: input, output and log are gone."""
        with self.changed:
            run.input, run.output, run.logs, run.data_removed = {}, None, "", True

    def rotate_secret(self) -> None:
        """A new signing secret; the old one signs beside it until `forget_old_secret`."""
        self.signing = [new_secret(), self.signing[0]]

    def forget_old_secret(self) -> None:
        """The rotation is over."""
        self.signing = self.signing[:1]

    def _end(self, run: Run, status: str, *, error: str | None = None, output: Any = None) -> None:
        with self.changed:
            if run.status in FINAL:
                return
            run.status, run.completed, run.error, run.output = status, self.clock(), error, output
            if run.started is not None:
                self.bill.end(run.id)
            self.changed.notify_all()
        self.tell(run, "completed")

    # ---- webhooks ----------------------------------------------------------------------------------------------------

    def sign(self, body: bytes, *, at: datetime | None = None, webhook_id: str | None = None) -> dict[str, str]:
        """The three headers of a webhook."""
        webhook_id = webhook_id or f"msg_{secrets.token_hex(12)}"
        stamp = str(int((at or self.shown_now()).timestamp()))
        content = f"{webhook_id}.{stamp}.".encode() + body
        signatures = [
            base64.b64encode(hmac.digest(base64.b64decode(key[6:]), content, hashlib.sha256)).decode()
            for key in self.signing
        ]
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": stamp,
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }

    def tell(self, run: Run, event: str) -> None:
        """Sends the webhook of an event, if it was asked for; terminal ones again until they are taken."""
        if run.webhook is None or event not in run.events:
            return
        body = json.dumps(self.shown_run(run)).encode()
        hook = Hook(run.webhook, {**self.sign(body), "Content-Type": "application/json"}, body)
        thread = threading.Thread(target=self._deliver, args=(hook, event), daemon=True)
        self._sending.append(thread)
        thread.start()

    def _deliver(self, hook: Hook, event: str) -> None:
        for _copy in range(self.copies):
            pause_s = self.hook_pause_s
            for _try in range(_TRIES if event == "completed" else 1):
                status = self._send(hook)
                with self.changed:
                    self.hooks.append((hook, status))
                    self.changed.notify_all()
                if 200 <= status < 300 or self.ended.wait(pause_s):
                    break
                pause_s *= 2

    def settle(self) -> None:
        """Waits until every webhook was sent."""
        for thread in self._sending:
            thread.join(30)

    # ---- the API -----------------------------------------------------------------------------------------------------

    def route(self, call: Call) -> Answer:
        if call.path.startswith("/up/") and call.method == "PUT":
            self.uploads[call.path] = call.body
            return Answer(200, {})
        if call.path.startswith("/cog/") and self.on_told is not None:
            self.on_told(call)
            return Answer(200, {})
        if call.headers.get("authorization", "").partition(" ")[2] != KEY:
            detail = "You did not pass a valid authentication token"
            return Answer(401, {"title": "Unauthenticated", "detail": detail, "status": 401})
        routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", r"/v1/account", self._account),
            ("GET", r"/v1/hardware", self._hardware),
            ("GET", r"/v1/webhooks/default/secret", self._secret),
            ("GET", r"/v1/models/([^/]+/[^/]+)", self._model),
            ("GET", r"/v1/models/([^/]+/[^/]+)/versions", self._versions),
            ("POST", r"/v1/models/([^/]+/[^/]+)/versions/([0-9a-f]+)/trainings", self._train),
            ("POST", r"/v1/predictions", self._predict),
            ("GET", r"/v1/(trainings|predictions)", self._list),
            ("GET", r"/v1/(trainings|predictions)/([^/]+)", self._get),
            ("POST", r"/v1/(trainings|predictions)/([^/]+)/cancel", self._cancel),
            ("POST", r"/v1/files", self._upload),
            ("GET", r"/v1/files/([^/]+)", self._file),
        ]
        for method, pattern, answer in routes:
            if method == call.method and (found := re.fullmatch(pattern, call.path)):
                with self.changed:
                    return answer(call, *found.groups())
        return _missing()

    def _account(self, _call: Call) -> Answer:
        return Answer(200, {"type": "organization", "username": OWNER, "name": "Acme", "github_url": None})

    def _hardware(self, _call: Call) -> Answer:
        return Answer(200, [{"sku": sku, "name": f"Nvidia {sku}"} for sku in PRICES_MICRO_USD_PER_HOUR])

    def _secret(self, _call: Call) -> Answer:
        return Answer(200, {"key": self.signing[0]})

    def _version(self, version: str) -> dict[str, Any]:
        born = self.shown(datetime.fromisoformat("2026-08-01T10:00:00+00:00")).isoformat()
        return {"id": version, "created_at": born, "cog_version": "0.23.1", "openapi_schema": {}}

    def _model(self, _call: Call, name: str) -> Answer:
        model = self.models.get(name)
        if model is None:
            return _missing()
        latest = self._version(model.versions[0]) if model.versions else None
        return Answer(200, {"owner": OWNER, "name": name.partition("/")[2], "latest_version": latest})

    def _versions(self, _call: Call, name: str) -> Answer:
        model = self.models.get(name)
        if model is None:
            return _missing()
        results = [self._version(each) for each in model.versions]
        return Answer(200, {"previous": None, "next": None, "results": results})

    def _train(self, call: Call, name: str, version: str) -> Answer:
        model, body = self.models.get(name), call.json()
        if model is None or version not in model.versions:
            return _missing()
        if body.get("destination") not in self.models or not isinstance(body.get("input"), dict):
            detail = "The specified training destination does not exist"
            return Answer(422, {"title": "Invalid", "detail": detail, "status": 422})
        return self._created("trainings", name, version, body, call)

    def _predict(self, call: Call) -> Answer:
        body = call.json()
        name = next((name for name, model in self.models.items() if body.get("version") in model.versions), None)
        if name is None:
            return Answer(422, {"title": "Invalid version or not permitted", "detail": "no such version"})
        return self._created("predictions", name, body["version"], body, call)

    def _created(self, kind: Kind, model: str, version: str, body: dict[str, Any], call: Call) -> Answer:
        run = Run(
            f"{next(self._numbers):06d}{secrets.token_hex(10)}",
            kind,
            model,
            version,
            dict(body["input"]),
            self.clock(),
            webhook=body.get("webhook"),
            events=tuple(body.get("webhook_events_filter") or ("output", "completed")),
            cancel_after=call.headers.get("cancel-after"),
        )
        self.runs[run.id] = run
        if self.on_create is not None:
            self.on_create(run)
        shown = self.shown_run(run)
        for later in ("output", "metrics", "started_at"):  # the answer to a create may lack them
            shown.pop(later, None)
        return Answer(201, shown)

    def _list(self, call: Call, kind: Kind) -> Answer:
        start = int(call.query.get("cursor", "0"))
        found = [run for run in reversed(self.runs.values()) if run.kind == kind]
        page = found[start : start + self.page_size]
        following = start + self.page_size
        more = f"{self.api_url}/{kind}?cursor={following}" if following < len(found) else None
        return Answer(200, {"previous": None, "next": more, "results": [self.shown_run(run) for run in page]})

    def _get(self, _call: Call, kind: Kind, run_id: str) -> Answer:
        run = self.runs.get(run_id)
        return Answer(200, self.shown_run(run)) if run is not None and run.kind == kind else _missing()

    def _cancel(self, _call: Call, kind: Kind, run_id: str) -> Answer:
        run = self.runs.get(run_id)
        if run is None or run.kind != kind:
            return _missing()
        before = self.shown_run(run)
        if run.status not in FINAL:
            if self.on_cancel is not None and run.status == "processing":
                self.on_cancel(run)
            else:
                self.cancelled(run)
        return Answer(200, before)  # cancelling is asynchronous: the answer may show what was

    def _upload(self, call: Call) -> Answer:
        if len(call.body) > UPLOAD_LIMIT_BYTES + 4096:
            return Answer(413, {"detail": "file too large"})
        head = f"Content-Type: {call.headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + call.body)
        (part,) = [
            part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "content"
        ]
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        number = f"file{len(self.files) + 1}"
        self.files[number] = {
            "id": number,
            "name": part.get_filename(),
            "content_type": part.get_content_type(),
            "size": len(content),
            "etag": number,
            "checksums": {"sha256": hashlib.sha256(content).hexdigest()},
            "metadata": {},
            "created_at": self.shown_now().isoformat(),
            "expires_at": (self.shown_now() + timedelta(days=1)).isoformat(),
            "urls": {"get": f"{self.api_url}/files/{number}"},
        }
        return Answer(201, self.files[number])

    def _file(self, _call: Call, number: str) -> Answer:
        return Answer(200, self.files[number]) if number in self.files else _missing()

    def shown_run(self, run: Run) -> dict[str, Any]:
        """As GET and webhooks show it."""
        seconds = (run.completed - run.started).total_seconds() if run.completed and run.started else None
        shown = {
            "id": run.id,
            "model": run.model,
            "version": run.version,
            "input": {name: "[REDACTED]" if name in _SECRET_INPUTS else value for name, value in run.input.items()},
            "output": run.output,
            "logs": run.logs,
            "error": run.error,
            "status": run.status,
            "source": "api",
            "data_removed": run.data_removed,
            "created_at": self.shown(run.created).isoformat(),
            "started_at": self.shown(run.started).isoformat() if run.started else None,
            "completed_at": self.shown(run.completed).isoformat() if run.completed else None,
            "urls": {"get": f"{self.api_url}/predictions/{run.id}"},  # of trainings too, as the published example
        }
        if seconds is not None and not run.without_metrics:
            shown["metrics"] = {"predict_time": seconds}
        return shown


def new_secret() -> str:
    """A signing secret in Replicate's form."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"


def _missing() -> Answer:
    return Answer(404, {"detail": "The requested resource could not be found.", "status": 404})
