"""Kaggle's kernels on loopback: takes what the vendor's client pushes, and runs a pushed script as a session would.

Beside the faults of `tests.simulators.faults`: errors inside an answer with status 200, lists that lag, retired
machines that are replaced silently, 403 for kernels that do not exist, a limit of sessions, weekly hours.
"""

import base64
import json
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

_KERNELS = "/v1/kernels.KernelsApiService/"
_OAUTH = "/v1/security.OAuthService/"
_LOGS = "/v1/kernels/logs/stream/"
USER = "someone"
KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "KGAT_a-token-of-a-test-7c20"
ENVIRONMENT = {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
OVER = frozenset({"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"})
MACHINES = {
    "NvidiaTeslaT4": "NvidiaTeslaT4",
    "TpuV5E8": "TpuV5E8",
    "NvidiaTeslaP100": "NvidiaTeslaT4",
    "TpuV38": "TpuV5E8",
    "Tpu1VmV38": "TpuV5E8",
}
"""What a session really gets; anything else gets a CPU."""
SESSIONS_FULL = "Maximum batch GPU session count of {} reached."
QUOTA_GONE = "You have exceeded your weekly GPU quota of {:.0f} hours."
_LONGEST_S = 12 * 3600


@dataclass
class KernelVersion:
    """One pushed version of a kernel and its session."""

    ref: str
    pushed: dict[str, Any]
    number: int
    pushed_at: datetime
    status: str = "QUEUED"
    exit_code: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failure: str = ""
    started_at: datetime | None = None

    @property
    def slug(self) -> str:
        return self.ref.partition("/")[2]

    @property
    def machine(self) -> str:
        """What it runs on."""
        return MACHINES.get(self.pushed.get("machineShape", ""), "")

    @property
    def log(self) -> str:
        return "".join(event["data"] for event in self.events)


class Kaggle(Simulator):
    """One account."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.kernels: dict[str, list[KernelVersion]] = {}
        self.refusal_text = ""
        """What SaveKernel answers as its error, whatever is pushed."""
        self.max_sessions = 2
        self.quota_s = 30 * 3600.0
        self.page_size = 20
        """The most that a list answers at once."""
        self.lag_s = 0.0
        """A kernel is listed only so long after its push."""
        self.codes_in_body: deque[int] = deque()
        """The next calls answer 200 with such a code in the body."""

    def client_program(self, code: str) -> str:
        """A program for the vendor's interpreter: `api` is an authenticated client that speaks to this server."""
        return (
            "import json, kagglesdk.kaggle_env as env\n"
            f"env._env_to_endpoint[env.KaggleEnv.PROD] = {self.url!r}\n"
            "from kaggle.api.kaggle_api_extended import KaggleApi\n"
            f"api = KaggleApi(); api.authenticate()\n{code}"
        )

    def execute(self, ref: str, python: str, env: dict[str, str], folder: Path) -> KernelVersion:
        """Run the newest version's script to its end, with nothing of ours in its environment but `env`."""
        version = self.begin(ref)
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "script.py"
        script.write_text(version.pushed["text"], encoding="utf-8")
        done = subprocess.run([python, str(script)], cwd=folder, env=env, check=False, capture_output=True, text=True)
        script.unlink()
        for line in (done.stdout + done.stderr).splitlines():
            self.write(ref, line)
        return self.finish(ref, done.returncode)

    def version(self, ref: str) -> KernelVersion:
        """The newest version of a kernel."""
        return self.kernels[ref][-1]

    def begin(self, ref: str) -> KernelVersion:
        """The session leaves the queue."""
        with self.changed:
            version = self.version(ref)
            if version.status == "QUEUED":
                version.status, version.started_at = "RUNNING", self.clock()
                self.bill.start(ref, version.slug, 0)
            return version

    def write(self, ref: str, line: str) -> None:
        """The script writes a line."""
        with self.changed:
            version = self.version(ref)
            since = (self.clock() - (version.started_at or self.clock())).total_seconds()
            version.events.append({"stream_name": "stdout", "time": since, "data": f"{line}\n"})
            self.changed.notify_all()

    def finish(self, ref: str, code: int = 0) -> KernelVersion:
        """The script ends."""
        version = self.version(ref)
        version.exit_code = code
        self._end(version, "COMPLETE" if code == 0 else "ERROR")
        return version

    def vanish(self, ref: str, word: str = "CANCEL_ACKNOWLEDGED") -> None:
        """The session is taken away, as by a click on the web page."""
        self._end(self.version(ref), word)

    def say(self, ref: str, word: str) -> None:
        """From now on its status is this word."""
        with self.changed:
            self.version(ref).status = word

    def is_create(self, call: Call) -> bool:
        return call.path == f"{_KERNELS}SaveKernel"

    def refusal(self, status: int) -> Answer:
        return Answer(status, {"code": status, "message": f"simulated {status}"})

    def route(self, call: Call) -> Answer:
        if self.codes_in_body:
            return Answer(200, {"code": self.codes_in_body.popleft(), "message": "Too many requests"})
        if not self._knows(call.headers.get("authorization", "")):
            return Answer(401, {"code": 401, "message": "Unauthenticated"})
        with self.changed:
            self._end_what_is_overdue()
            if call.path.startswith(_LOGS):
                return self._with_version(call.path.removeprefix(_LOGS), self._logs)
            if call.path == f"{_OAUTH}IntrospectToken":
                active = call.json().get("token") == TOKEN
                return Answer(200, {"active": True, "username": USER, "userId": 1} if active else {"active": False})
            return self._kernels(call.path.removeprefix(_KERNELS), call.json())

    def _kernels(self, method: str, body: dict[str, Any]) -> Answer:
        of_account: dict[str, Callable[[], Answer]] = {
            "SaveKernel": lambda: self._save(body),
            "ListKernels": lambda: self._list(body),
            "GetAcceleratorQuotaStatistics": self._quota,
            "CancelKernelSession": lambda: Answer(200, {"errorMessage": "No such session"}),
        }
        of_kernel: dict[str, Callable[[KernelVersion], Answer]] = {
            "GetKernelSessionStatus": self._status,
            "ListKernelSessionOutput": self._output,
            "GetKernel": lambda version: Answer(200, {"metadata": self._metadata(version)}),
        }
        if method in of_account:
            return of_account[method]()
        if method in of_kernel:
            return self._with_version(f"{body.get('userName')}/{body.get('kernelSlug')}", of_kernel[method])
        return Answer(404, {"code": 404, "message": method})

    def _knows(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        if kind == "Bearer":
            return value == TOKEN
        return kind == "Basic" and base64.b64decode(value).decode() == f"{USER}:{KEY}"

    def _with_version(self, ref: str, answer: Callable[[KernelVersion], Answer]) -> Answer:
        found = self.kernels.get(ref)
        if found is None:  # of somebody else's private kernel it says the same
            return Answer(403, {"code": 403, "message": "Permission 'kernels.get' was denied"})
        return answer(found[-1])

    def _save(self, body: dict[str, Any]) -> Answer:
        alive = [one for versions in self.kernels.values() for one in versions if one.status not in OVER]
        if self.refusal_text:
            return Answer(200, {"error": self.refusal_text})
        if len(alive) >= self.max_sessions:
            return Answer(200, {"error": SESSIONS_FULL.format(self.max_sessions)})
        if self.bill.seconds() >= self.quota_s:
            return Answer(200, {"error": QUOTA_GONE.format(self.quota_s / 3600)})
        # The title makes the slug: where the two differ, another kernel comes into being.
        slug = re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()).strip("-")
        ref = f"{body['slug'].partition('/')[0]}/{slug}"
        versions = self.kernels.setdefault(ref, [])
        versions.append(KernelVersion(ref, body, len(versions) + 1, self.clock()))
        return Answer(
            200,
            {
                "ref": f"/code/{ref}",
                "url": f"https://www.kaggle.com/code/{ref}",
                "versionNumber": len(versions),
                "kernelId": len(self.kernels),
            },
        )

    def _status(self, version: KernelVersion) -> Answer:
        shown = {"status": version.status}
        if version.failure:
            shown["failureMessage"] = version.failure
        return Answer(200, shown)

    def _output(self, version: KernelVersion) -> Answer:
        return Answer(200, {"files": [], "log": json.dumps(version.events) if version.events else ""})

    def _list(self, body: dict[str, Any]) -> Answer:
        if body.get("group") != "PROFILE":
            return Answer(200, {"kernels": []})  # all of ours are private
        newest = [versions[-1] for versions in self.kernels.values()]
        seen = [one for one in newest if (self.clock() - one.pushed_at).total_seconds() >= self.lag_s]
        if body.get("sortBy") == "DATE_RUN":
            seen.sort(key=lambda one: one.started_at or one.pushed_at, reverse=True)
        start = int(body.get("pageToken") or 0)
        size = min(int(body.get("pageSize") or self.page_size), self.page_size)
        following = str(start + size) if start + size < len(seen) else ""
        page = [self._metadata(one) for one in seen[start : start + size]]
        return Answer(200, {"kernels": page, "nextPageToken": following})

    def _metadata(self, version: KernelVersion) -> dict[str, Any]:
        ran = self.shown(version.started_at or version.pushed_at)
        return {
            "id": 1,
            "ref": version.ref,
            "slug": version.slug,
            "title": version.pushed["newTitle"],
            "author": USER,
            "lastRunTime": ran.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z",
            "isPrivate": version.pushed.get("isPrivate", False),
            "currentVersionNumber": version.number,
        }

    def _quota(self) -> Answer:
        total = {"totalTimeAllowed": f"{self.quota_s:.0f}s", "timeReserved": "0s"}
        refresh = (self.shown_now() + timedelta(days=3)).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
        gpu = {**total, "timeUsed": f"{self.bill.seconds():.3f}s"}
        return Answer(200, {"quotaRefreshTime": refresh, "gpuQuota": gpu, "tpuQuota": {**total, "timeUsed": "0s"}})

    def _logs(self, version: KernelVersion) -> Answer:
        if version.status in OVER:
            return Answer(200, version.events)
        return Answer(200, headers={"Content-Type": "text/event-stream"}, parts=self._live(version))

    def _live(self, version: KernelVersion) -> Iterator[bytes]:
        sent = 0
        while True:
            with self.changed:
                new, over = version.events[sent:], version.status in OVER
                if not new and not over:
                    self.changed.wait(0.05)
            sent += len(new)
            yield b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in new)
            if over:
                yield b"data: END_OF_LOG\n\n"
                return

    def _end(self, version: KernelVersion, word: str, failure: str = "") -> None:
        with self.changed:
            if version.status in OVER:
                return
            if version.started_at is not None:
                self.bill.end(version.ref)
            version.status, version.failure = word, failure
            self.changed.notify_all()

    def _end_what_is_overdue(self) -> None:
        for version in [one for versions in self.kernels.values() for one in versions]:
            limit_s = version.pushed.get("sessionTimeoutSeconds") or _LONGEST_S
            started = version.started_at
            if version.status == "RUNNING" and started and (self.clock() - started).total_seconds() >= limit_s:
                self._end(version, "ERROR", f"Your notebook ran for longer than {limit_s} seconds and was stopped.")
