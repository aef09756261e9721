"""RunPod's REST API v2 on loopback as its documents of 2026 have it: pods, their logs, the catalogue and the bill.

A pod stands still until a test moves it, or really runs: with `command`, each new pod starts it in the environment
that RunPod gives a container, and starts it again when it ends, as RunPod does.
"""

import base64
import json
import os
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

KEY = "rpa_TEST_KEY_5521"
CONTAINER = {"name", "image", "args", "disk", "env", "ports", "registry", "templateId"}
FIELDS = CONTAINER | {"cloud", "dataCenterIds", "gpu", "cpu", "mounts", "globalNetworking", "startSsh", "startJupyter"}
ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}
CATALOGUE: list[dict[str, Any]] = [
    {
        "id": "NVIDIA GeForce RTX 4090",
        "name": "RTX 4090",
        "pool": "ADA_24",
        "manufacturer": "NVIDIA",
        "memory": 24,
        "secure": True,
        "community": True,
        "price": {"secure": 0.44, "community": 0.31, "serverless": 1.1},
        "maxCount": {"secure": 8, "community": 4},
        "availability": "HIGH",
        "dataCenters": [
            {"id": "US-KS-2", "name": "US Kansas 2", "availability": "HIGH"},
            {"id": "EU-RO-1", "name": "EU Romania 1", "availability": "LOW"},
            {"id": "US-TX-3", "name": "US Texas 3", "availability": "NONE"},
        ],
    },
    {
        "id": "NVIDIA H100 80GB HBM3",
        "name": "H100 SXM",
        "pool": "ADA_80_PRO",
        "manufacturer": "NVIDIA",
        "memory": 80,
        "secure": True,
        "community": False,
        "price": {"secure": 3.29, "community": 0},
        "maxCount": {"secure": 8, "community": 0},
        "availability": "NONE",
    },
]
NO_CAPACITY = "There are no longer any instances available with the requested specifications. Please refresh."
DISK_USD_PER_GB_HOUR = 0.10 / 730
_KILL_AFTER = timedelta(seconds=10)
"""From a stop to the container's kill."""
_PROBLEM = {"Content-Type": "application/problem+json"}


@dataclass
class Pod:
    """One pod; moments are true."""

    id: str
    body: dict[str, Any]
    created: datetime
    price_usd: float
    status: str = "PROVISIONING"
    started: datetime | None = None
    stopped: datetime | None = None
    """When its GPUs were given back."""
    killed_at: datetime | None = None
    """When a container that does not heed a stop is killed."""
    restarts: int = 0
    log: list[tuple[datetime, str]] = field(default_factory=list[tuple[datetime, str]])
    process: subprocess.Popen[str] | None = None

    @property
    def label(self) -> str:
        return self.body["name"]

    @property
    def key(self) -> str:
        """What the pod itself may call with."""
        return f"rpp_{self.id}"

    @property
    def is_stubborn(self) -> bool:
        """Whether the trainer's config says that it heeds no stop."""
        coded = self.body.get("env", {}).get("TUNEWRIGHT_RUN_SPEC_BASE64")
        return bool(coded) and bool(json.loads(base64.b64decode(coded))["config"].get("stubborn"))


class RunPodPods(Simulator):
    """One account."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.pods: dict[str, Pod] = {}
        """All that were ever created; those that are deleted have status TERMINATED and are shown to nobody."""
        self.has_capacity = True
        self.refused_gpus: set[str] = set()
        """The account may not have these: 403."""
        self.balance_usd = 42.18
        """At 0 or below nothing is created: 402."""
        self.has_account_route = True
        self.per_minute: int | None = 60
        """Beyond it 429 with Retry-After; None = no limit."""
        self.stream_cut_after: int | None = None
        """A log stream breaks after so many events."""
        self.command: list[str] | None = None
        """What each new pod runs; None: nothing, tests move it."""
        self.machine_env: Mapping[str, str] = {}
        self.folder: Path | None = None
        """Where the containers work."""
        self._asked: deque[float] = deque()

    def __exit__(self, *_: object) -> None:
        for pod in list(self.pods.values()):
            self._delete(pod)
            if pod.process is not None:
                pod.process.wait()
        super().__exit__()

    # ---- what a test does to a pod -----------------------------------------------------------------------------

    def of(self, attempt_hex: str) -> list[Pod]:
        """Every pod that was ever created for an attempt."""
        with self.changed:
            return [pod for pod in self.pods.values() if attempt_hex in pod.label]

    def begin(self, pod: Pod) -> None:
        """Its container is healthy."""
        with self.changed:
            pod.status, pod.started = "RUNNING", self.clock()
            self.changed.notify_all()

    def say(self, pod: Pod, *lines: str) -> None:
        """Its container writes."""
        with self.changed:
            pod.log += [(self.clock(), line) for line in lines]
            self.changed.notify_all()

    def exit(self, pod: Pod, status: str = "EXITED") -> None:
        """It stops, as one that was stopped in the console, or that ran out of money: its disk costs on."""
        with self.changed:
            pod.status, pod.stopped = status, pod.stopped or self.clock()
            disk_gb = pod.body.get("mounts", {}).get("persistent", {}).get("size", 0)
            self.bill.reprice(pod.id, round(disk_gb * 2 * DISK_USD_PER_GB_HOUR * 1_000_000))
            self.changed.notify_all()
        _end(pod.process)

    def finish(self, pod: Pod) -> None:
        """Its run has ended, and the entry deletes it from inside."""
        self._delete(pod)

    def vanish(self, pod: Pod) -> None:
        """It is gone for good: its host died, or it was deleted elsewhere."""
        self._delete(pod)

    def run_out_of_money(self) -> None:
        """RunPod stops every pod, and creates none."""
        self.balance_usd = 0.0
        for pod in self.pods.values():
            if pod.status in {"PROVISIONING", "STARTING", "RUNNING"}:
                self.exit(pod)

    # ---- the API -----------------------------------------------------------------------------------------------

    def is_create(self, call: Call) -> bool:
        return (call.method, call.path) == ("POST", "/v2/pods")

    def refusal(self, status: int) -> Answer:
        titles = {402: "Payment Required", 429: "Too Many Requests", 500: "Internal Server Error"}
        return _problem(status, titles.get(status, "Error"), f"simulated {status}")

    def route(self, call: Call) -> Answer:
        key = call.headers.get("authorization", "").removeprefix("Bearer ")
        parts = call.path.strip("/").split("/")
        own = next((pod for pod in self.pods.values() if pod.key == key), None)
        if key != KEY and own is None:
            return _problem(401, "Unauthorized", "missing bearer token")
        if own is not None and parts[:3] != ["v2", "pods", own.id]:
            return _problem(403, "Forbidden", "access denied")
        wait_s = self._over_the_limit()
        if wait_s is not None:
            throttled = _problem(429, "Too Many Requests", "rate limit exceeded for the minute window")
            return Answer(429, throttled.content, headers={**_PROBLEM, "Retry-After": str(wait_s)})
        with self.changed:
            for pod in self.pods.values():
                if pod.killed_at is not None and self.clock() >= pod.killed_at and pod.status == "RUNNING":
                    self.exit(pod)
            return self._answer(call, parts)

    def _answer(self, call: Call, parts: list[str]) -> Answer:  # noqa: PLR0911 - one return for each route
        match call.method, parts:
            case "GET", ["v2", "account"] if self.has_account_route:
                return Answer(200, {"id": "user_2abc123", "email": "dev@example.com"})
            case "GET", ["v2", "billing", "balance"]:
                return Answer(200, {"balanceAmount": self.balance_usd, "billingMode": "PREPAID"})
            case "GET", ["v2", "billing", "pods"]:
                return Answer(200, {"records": self._records(call.query["podId"]), "metadata": {}})
            case "GET", ["v2", "catalog", "gpus"]:
                if (call.query.get("include") == "AVAILABILITY") != ("product" in call.query):
                    return _problem(400, "Bad Request", "product is required with include=AVAILABILITY")
                return Answer(200, {"gpus": CATALOGUE})
            case "GET", ["v2", "pods"]:
                return Answer(200, {"pods": [self._view(pod) for pod in self.pods.values() if _is_there(pod)]})
            case "POST", ["v2", "pods"]:
                return self._create(call.json())
            case _, ["v2", "pods", pod_id, *rest]:
                pod = self.pods.get(pod_id)
                return self._one(call, pod, rest) if pod is not None and _is_there(pod) else _not_found("pod")
            case _:
                return _not_found("resource")

    def _create(self, body: dict[str, Any]) -> Answer:
        refused = self._refused(body)
        if refused is not None:
            return refused
        gpu = next(gpu for gpu in CATALOGUE if gpu["id"] == body["gpu"]["id"])
        cloud, count = body.get("cloud", "SECURE").lower(), body["gpu"].get("count", 1)
        if not self.has_capacity or count > gpu["maxCount"][cloud]:
            return _problem(400, "Bad Request", NO_CAPACITY)
        pod = Pod(uuid.uuid4().hex[:14], body, self.clock(), gpu["price"][cloud] * count)
        self.pods[pod.id] = pod
        self.bill.start(pod.id, pod.label, round(pod.price_usd * 1_000_000))
        if self.command is not None:
            threading.Thread(target=self._execute, args=(pod, self.command), daemon=True).start()
        return Answer(201, self._view(pod))

    def _refused(self, body: dict[str, Any]) -> Answer | None:
        faults = [f"$: additional properties '{name}' not allowed" for name in sorted(body.keys() - FIELDS)]
        faults += [f"$: missing property '{name}'" for name in ("name", "image") if not body.get(name)]
        if faults:
            return _problem(422, "Unprocessable Entity", "Request validation failed.", errors=faults)
        if ("gpu" in body) == ("cpu" in body):
            return _problem(400, "Bad Request", "exactly one of gpu or cpu must be set")
        if body["gpu"]["id"] not in {gpu["id"] for gpu in CATALOGUE}:
            return _problem(400, "Bad Request", f"unknown gpu type {body['gpu']['id']}")
        if body["gpu"]["id"] in self.refused_gpus:
            return _problem(403, "Forbidden", "access denied")
        return _problem(402, "Payment Required", "insufficient balance") if self.balance_usd <= 0 else None

    def _one(self, call: Call, pod: Pod, rest: list[str]) -> Answer:
        match call.method, rest:
            case "GET", []:
                return Answer(200, self._view(pod))
            case "DELETE", []:
                self._delete(pod)
                return Answer(204, body=b"")
            case "POST", ["action"]:
                return self._act(pod, call.json()["action"])
            case "GET", ["logs"]:
                stream = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
                return Answer(200, headers=stream, parts=self._events(pod, call.headers.get("last-event-id")))
            case _:
                return _not_found("resource")

    def _act(self, pod: Pod, action: str) -> Answer:
        if action not in ACTIONS.get(pod.status, ["terminate"]):
            return _problem(409, "Conflict", f"cannot {action} a pod that is {pod.status}")
        if action == "terminate":
            self._delete(pod)
            return Answer(204, body=b"")
        if action == "stop" and (pod.is_stubborn or pod.process is not None):
            pod.killed_at = self.clock() + _KILL_AFTER
            _end(pod.process)
        elif action == "stop":
            self.exit(pod)
        return Answer(200, self._view(pod))

    def _view(self, pod: Pod) -> dict[str, Any]:
        costs = pod.status not in {"EXITED", "TERMINATED"}
        return {
            **{name: value for name, value in pod.body.items() if name != "dataCenterIds"},
            "id": pod.id,
            "status": pod.status,
            "actions": ACTIONS.get(pod.status, []),
            "dataCenterId": (pod.body.get("dataCenterIds") or ["US-KS-2"])[0],
            "cost": pod.price_usd if costs else 0.0,
            "locked": False,
            "runtime": {"uptime": 1} if pod.status == "RUNNING" else None,
            "createdAt": self._text(pod.created),
            "startedAt": self._text(pod.started) if pod.started is not None else None,
        }

    def _text(self, moment: datetime) -> str:
        return self.shown(moment).isoformat().replace("+00:00", "Z")

    def _delete(self, pod: Pod) -> None:
        with self.changed:
            if pod.status != "TERMINATED":
                pod.status, pod.stopped = "TERMINATED", pod.stopped or self.clock()
                self.bill.end(pod.id)
                self.changed.notify_all()
        _end(pod.process)

    def _events(self, pod: Pod, after: str | None) -> Iterator[bytes]:
        sent, count = 0, 0
        while not self.ended.is_set() and _is_there(pod):
            with self.changed:
                if len(pod.log) == sent:
                    self.changed.wait(0.05)
                new = list(enumerate(pod.log))[sent:]
            sent += len(new)
            for number, (moment, line) in new:
                event_id = f"{self._text(moment)}/{number:012d}"
                if after is None or event_id.rpartition("/")[2] > after.rpartition("/")[2]:
                    data = json.dumps({"ts": self._text(moment), "source": "container", "line": line})
                    yield f"id: {event_id}\ndata: {data}\n\n".encode()
                    count += 1
                if count == self.stream_cut_after:
                    raise BrokenPipeError
            yield b""

    def _records(self, pod_id: str) -> list[dict[str, Any]]:
        """Its hours, the one in progress as far as it has come."""
        pod = self.pods.get(pod_id)
        if pod is None:
            return []
        records: list[dict[str, Any]] = []
        at, until = pod.created, pod.stopped or self.clock()
        while at < until:
            end = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
            cost_usd = (min(end, until) - at).total_seconds() / 3600 * pod.price_usd
            amounts = {"totalAmount": cost_usd, "gpuAmount": cost_usd, "cpuAmount": 0, "diskAmount": 0}
            start = end - timedelta(hours=1)
            records.append({"startTime": self._text(start), "endTime": self._text(end), "podId": pod_id, **amounts})
            at = end
        return records

    def _over_the_limit(self) -> int | None:
        if self.per_minute is None:
            return None
        now = time.monotonic()
        while self._asked and now - self._asked[0] >= 60:
            self._asked.popleft()
        if len(self._asked) >= self.per_minute:
            return max(1, round(60 - (now - self._asked[0])))
        self._asked.append(now)
        return None

    # ---- pods that really run ----------------------------------------------------------------------------------

    def _execute(self, pod: Pod, command: list[str]) -> None:
        assert self.folder is not None
        folder = self.folder / pod.id
        folder.mkdir(parents=True)
        env = {**self.machine_env, **pod.body["env"], "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": pod.key}
        while _is_there(pod) and pod.status != "EXITED":
            pod.process = subprocess.Popen(
                command,
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.begin(pod)
            assert pod.process.stdout is not None
            with pod.process.stdout as lines:
                for line in lines:
                    self.say(pod, line.rstrip("\n"))
            pod.process.wait()
            if pod.killed_at is not None and _is_there(pod):
                self.exit(pod)
            pod.restarts += 1


def _end(process: subprocess.Popen[str] | None) -> None:
    """As a container is ended: asked, and killed when its time is over. Returns at once."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    killing = threading.Timer(_KILL_AFTER.total_seconds(), process.kill)
    killing.daemon = True
    killing.start()


def _is_there(pod: Pod) -> bool:
    return pod.status != "TERMINATED"


def _problem(status: int, title: str, detail: str, **more: Any) -> Answer:
    return Answer(status, {"title": title, "status": status, "detail": detail, **more}, headers=_PROBLEM)


def _not_found(what: str) -> Answer:
    return _problem(404, "Not Found", f"{what} not found")
