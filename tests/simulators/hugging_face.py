"""Hugging Face Jobs and Spaces on loopback: takes what the vendor's client creates, and runs a job's command.

Beside the faults of `tests.simulators.faults`: logs that break and begin anew, answers without `durations`, lists in
pages, credits that are used up, repositories that exist already.
"""

import base64
import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

TOKEN = "hf_token_of_a_test_4412"
USER = "someone"
ENDED = frozenset({"COMPLETED", "ERROR", "CANCELED", "DELETED"})
COSTS = frozenset({"APP_STARTING", "RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"})
"""Stages of a Space in which its hardware is paid for."""
PRICES = {"cpu-basic": 0.01, "t4-small": 0.40, "l4x1": 0.80, "a10g-small": 1.00, "a10g-largex2": 3.00, "h200x8": 40.0}
"""USD an hour, as in August 2026."""
_ACCELERATORS = {
    "t4-small": ("T4", 1, 16),
    "l4x1": ("L4", 1, 24),
    "a10g-small": ("A10G", 1, 24),
    "a10g-largex2": ("A10G", 2, 48),
    "h200x8": ("H200", 8, 1128),
}
_DEFAULT_TIMEOUT_S = 1800


def hardware() -> list[dict[str, Any]]:
    """As both lists of hardware show it."""
    return [
        {
            "name": name,
            "prettyName": name.upper(),
            "cpu": "4 vCPU",
            "ram": "15 GB",
            "accelerator": {
                "type": "gpu",
                "model": _ACCELERATORS[name][0],
                "quantity": str(_ACCELERATORS[name][1]),
                "vram": f"{_ACCELERATORS[name][2]} GB",
                "manufacturer": "Nvidia",
            }
            if name in _ACCELERATORS
            else None,
            "unitCostMicroUSD": round(price * 1e6 / 60),
            "unitCostUSD": price / 60,
            "unitLabel": "minute",
        }
        for name, price in PRICES.items()
    ]


def price_of(flavor: str) -> int:
    """Micro-dollars an hour, in whole ones a minute."""
    return round(PRICES[flavor] * 1e6 / 60) * 60


@dataclass
class HubJob:
    """One job as it was created."""

    id: str
    namespace: str
    created: dict[str, Any]
    created_at: datetime
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list[str])
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def label(self) -> str:
        return self.labels.get("tunewright-run", "")

    @property
    def labels(self) -> dict[str, str]:
        return self.created.get("labels", {})

    @property
    def log(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Space:
    """One Space."""

    id: str
    created: dict[str, Any]
    created_at: datetime
    secrets: dict[str, str]
    flavor: str
    stage: str = "NO_APP_FILE"
    error: str = ""
    files: dict[str, str] = field(default_factory=dict[str, str])
    commits: list[list[Any]] = field(default_factory=list[list[Any]])
    lines: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]


class HuggingFace(Simulator):
    """A Hub with the jobs and Spaces of one account."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.jobs: list[HubJob] = []
        self.spaces: dict[str, Space] = {}
        self.starts: list[str] = []
        """The name of each Space that ever got its files."""
        self.paused: list[str] = []
        self.failures = 0
        """How many pauses answer 500 before one is done."""
        self.credit_micro_usd = math.inf
        self.commit_refusal = ""
        """What a commit is answered with."""
        self.page_size = 50
        self.with_durations = True
        self.break_logs_after: int | None = None
        """A log breaks off after so many lines, once."""

    def is_create(self, call: Call) -> bool:
        """A Space comes into being with its repository, and to life with its first commit."""
        return call.method == "POST" and bool(re.fullmatch(r"/api/jobs/[^/]+|/api/spaces/.+/commit/[^/]+", call.path))

    def refusal(self, status: int) -> Answer:
        return Answer(status, {"error": f"simulated {status}"})

    def job(self, ref: str) -> HubJob:
        return next(job for job in self.jobs if job.id == ref)

    def begin(self, job: HubJob) -> None:
        """The job leaves the queue."""
        with self.changed:
            if job.stage == "SCHEDULING":
                job.stage, job.started_at = "RUNNING", self.clock()
                job.lines.append("===== Job started at a moment =====")
                self.bill.start(job.id, job.label, price_of(job.created["flavor"]))

    def end(self, job: HubJob, stage: str, message: str | None = None) -> None:
        """The job ends; a second end is none."""
        with self.changed:
            if job.stage in ENDED:
                return
            if job.started_at is not None:
                self.bill.end(job.id)
            job.stage, job.message, job.finished_at = stage, message, self.clock()
            self.changed.notify_all()

    def finish(self, job: HubJob, code: int = 0) -> None:
        """Its command ends by itself."""
        if code == 0:
            self.end(job, "COMPLETED")
        else:
            self.end(job, "ERROR", f"Job failed with exit code: {code}. Reason: Error")

    def execute(self, job: HubJob, folder: Path) -> int:
        """Run the job's command with what the Hub gives a container: its environment, its secrets, its id."""
        folder.mkdir(parents=True, exist_ok=True)
        given = {**job.created["environment"], **job.created.get("secrets", {})}
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "JOB_ID": job.id, **given}
        self.begin(job)
        done = subprocess.run(
            [*job.created["command"], *job.created["arguments"]],
            cwd=folder,
            env=env,
            check=False,
            capture_output=True,
            text=True,
        )
        job.lines += (done.stdout + done.stderr).splitlines()
        self.finish(job, done.returncode)
        return done.returncode

    def add_space(self, ref: str, created: dict[str, Any]) -> Space:
        """A Space without files."""
        given: list[dict[str, str]] = created.get("secrets", [])
        secrets = {one["key"]: one["value"] for one in given}
        self.spaces[ref] = Space(ref, created, self.clock(), secrets, created.get("hardware", "cpu-basic"))
        return self.spaces[ref]

    def show_space(self, space: Space, stage: str) -> None:
        """The Space comes to another stage; its hardware costs as long as it starts or runs."""
        with self.changed:
            costs, cost = stage in COSTS, space.stage in COSTS
            space.stage = stage
            if costs and not cost:
                self.bill.start(space.id, space.name, price_of(space.flavor))
            elif cost and not costs:
                self.bill.end(space.id)
            self.changed.notify_all()

    def route(self, call: Call) -> Answer:
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            return Answer(401, {"error": "Invalid credentials"})
        with self.changed:
            self._end_what_is_overdue()
            parts = call.path.strip("/").split("/")
            match parts:
                case ["api", "whoami-v2"]:
                    answer = Answer(200, _WHOAMI)
                case ["api", ("jobs" | "spaces"), "hardware"]:
                    answer = Answer(200, hardware())
                case ["api", "jobs", namespace, *rest]:
                    answer = self._jobs(call, namespace, rest)
                case ["api", "repos", operation]:
                    answer = self._repos(call, operation)
                case ["api", "spaces"]:
                    spaces = [one for one in self.spaces.values() if one.id.startswith(f"{call.query.get('author')}/")]
                    answer = self._page(call, [{"id": one.id, "sdk": "docker", "private": True} for one in spaces])
                case ["api", "spaces", owner, name, *rest]:
                    answer = self._space(call, f"{owner}/{name}", rest)
                case _:
                    answer = Answer(404, {"error": call.path})
            return answer

    def _jobs(self, call: Call, namespace: str, rest: list[str]) -> Answer:
        if namespace != USER:
            return Answer(404, {"error": "Namespace not found"})
        if not rest:
            return self._create(call.json(), namespace) if call.method == "POST" else self._list_jobs(call)
        job = next((one for one in self.jobs if one.id == rest[0]), None)
        if job is None:
            return Answer(404, {"error": "Job not found"}, headers={"X-Error-Code": "JobNotFound"})
        if rest[1:] == ["cancel"]:
            if job.stage in ENDED:
                return Answer(400, {"error": "Job is not running"})
            self.end(job, "CANCELED")
        elif rest[1:] == ["logs"]:
            lines = job.lines[-int(call.query["tail"]) :] if call.query.get("tail") else job.lines
            return self._events(lambda: lines, lambda: job.stage in ENDED)
        return Answer(200, self._view(job))

    def _create(self, body: dict[str, Any], namespace: str) -> Answer:
        if self.bill.micro_usd() >= self.credit_micro_usd:
            return Answer(402, {"error": "Pre-paid credits are used up: add some in the billing settings"})
        if body.get("flavor") not in PRICES:
            return Answer(400, {"error": f"Unknown flavor {body.get('flavor')}"})
        self.jobs.append(HubJob(f"job{len(self.jobs) + 1}", namespace, body, self.clock()))
        return Answer(200, self._view(self.jobs[-1]))

    def _list_jobs(self, call: Call) -> Answer:
        key, _, value = call.query.get("label", "").partition("=")
        found = [
            self._view(job)
            for job in reversed(self.jobs)
            if (not key or job.labels.get(key) == value) and call.query.get("stage", job.stage) == job.stage
        ]
        return self._page(call, found)

    def _page(self, call: Call, items: list[Any]) -> Answer:
        start = int(call.query.get("cursor") or 0)
        end = start + self.page_size
        query = "&".join(f"{name}={value}" for name, value in call.query.items() if name != "cursor")
        following = f'<{self.url}{call.path}?{query}&cursor={end}>; rel="next"'
        return Answer(200, items[start:end], headers={"Link": following} if end < len(items) else {})

    def _view(self, job: HubJob) -> dict[str, Any]:
        """As the API shows it: never its secrets."""
        now = self.clock()
        shown = {name: value for name, value in job.created.items() if name != "secrets"}
        ran = int(((job.finished_at or now) - job.started_at).total_seconds()) if job.started_at else None
        durations = {"schedulingSecs": 1, "runningSecs": ran, "totalSecs": int((now - job.created_at).total_seconds())}
        return {
            "id": job.id,
            "createdAt": self._shown(job.created_at),
            "startedAt": self._shown(job.started_at),
            "finishedAt": self._shown(job.finished_at),
            "status": {"stage": job.stage, "message": job.message},
            "owner": {"id": "1", "name": job.namespace, "type": "user"},
            **({"durations": durations} if self.with_durations else {}),
            **shown,
        }

    def _shown(self, moment: datetime | None) -> str | None:
        return self.shown(moment).isoformat().replace("+00:00", "Z") if moment else None

    def _events(self, lines: Callable[[], list[str]], is_over: Callable[[], bool]) -> Answer:
        return Answer(200, headers={"Content-Type": "text/event-stream"}, parts=self._live(lines, is_over))

    def _live(self, lines: Callable[[], list[str]], is_over: Callable[[], bool]) -> Iterator[bytes]:
        sent = 0
        while True:
            with self.changed:
                new, over = lines()[sent:], is_over()
                if not new and not over:
                    self.changed.wait(0.05)
            limit, self.break_logs_after = self.break_logs_after, None
            for line in new[:limit]:
                event = {"timestamp": self._shown(self.clock()), "data": line}
                yield f"data: {json.dumps(event)}\n\n".encode()
            if limit is not None:
                raise ConnectionResetError
            sent += len(new)
            if over:
                return
            yield b""

    def _repos(self, call: Call, operation: str) -> Answer:
        body = call.json()
        if body.get("type") != "space":
            return Answer(400, {"error": "only Spaces are simulated"})
        ref = f"{body.get('organization') or USER}/{body['name']}"
        if operation == "delete":
            space = self.spaces.pop(ref, None)
            if space is None:
                return Answer(404, {"error": "Repository not found"}, headers={"X-Error-Code": "RepoNotFound"})
            self.show_space(space, "DELETING")
            return Answer(200, {})
        if self.bill.micro_usd() >= self.credit_micro_usd:
            return Answer(402, {"error": "A Space on this hardware needs a paid plan"})
        if ref in self.spaces:
            return Answer(409, {"error": "You already created this space repo", "url": f"{self.url}/spaces/{ref}"})
        self.add_space(ref, body)
        return Answer(200, {"url": f"{self.url}/spaces/{ref}", "name": ref})

    def _space(self, call: Call, ref: str, rest: list[str]) -> Answer:
        space = self.spaces.get(ref)
        if space is None:
            return Answer(404, {"error": "Repository not found"}, headers={"X-Error-Code": "RepoNotFound"})
        match rest:
            case []:
                answer = Answer(200, self._show(space))
            case ["runtime"]:
                answer = Answer(200, self._runtime(space))
            case ["preupload", _]:
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in call.json()["files"]
                ]
                answer = Answer(200, {"files": files})
            case ["commit", _]:
                answer = self._commit(space, call.body)
            case ["pause"]:
                answer = self._pause(space)
            case ["logs", "run"]:
                answer = self._events(lambda: space.lines, lambda: space.stage not in COSTS)
            case _:
                answer = Answer(404, {"error": call.path})
        return answer

    def _pause(self, space: Space) -> Answer:
        if self.failures:
            self.failures -= 1
            return Answer(500, {"error": "try again"})
        self.paused.append(space.id)
        self.show_space(space, "PAUSED")
        return Answer(200, self._runtime(space))

    def _commit(self, space: Space, body: bytes) -> Answer:
        if self.commit_refusal:
            return Answer(400, {"error": self.commit_refusal})
        space.commits.append([json.loads(line) for line in body.splitlines()])
        for entry in space.commits[-1]:
            if entry["key"] == "file":
                space.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"]).decode()
        if space.stage == "NO_APP_FILE" and "Dockerfile" in space.files:
            self.starts.append(space.name)
            self.show_space(space, "BUILDING")
        return Answer(200, {"commitUrl": f"{self.url}/spaces/{space.id}/commit/1", "commitOid": "1" * 40})

    def _show(self, space: Space) -> dict[str, Any]:
        return {
            "id": space.id,
            "createdAt": self._shown(space.created_at),
            "private": space.created.get("visibility") == "private",
            "sdk": space.created.get("sdk"),
            "siblings": [{"rfilename": name} for name in [".gitattributes", *space.files]],
            "runtime": self._runtime(space),
        }

    def _runtime(self, space: Space) -> dict[str, Any]:
        current = space.flavor if space.stage in COSTS else None
        shown = {"stage": space.stage, "hardware": {"current": current, "requested": space.flavor}, "gcTimeout": None}
        return {**shown, "errorMessage": space.error} if space.error else shown

    def _end_what_is_overdue(self) -> None:
        for job in self.jobs:
            limit_s = job.created.get("timeoutSeconds") or _DEFAULT_TIMEOUT_S
            started = job.started_at
            if job.stage == "RUNNING" and started and (self.clock() - started).total_seconds() >= limit_s:
                self.end(job, "ERROR", "Job timeout")


_WHOAMI: dict[str, Any] = {
    "type": "user",
    "name": USER,
    "canPay": True,
    "isPro": False,
    "orgs": [],
    "auth": {"type": "access_token", "accessToken": {"displayName": "a test", "role": "write"}},
}
