"""RunPod serverless on loopback, from both sides: the job API that clients call, and what real workers poll and post.

Beside it the parts of RunPod's REST API that tell an endpoint's pool and prices, and RunPod's bill. Enough for the
vendor's own `runpod.Endpoint` and worker loop; words, shapes and limits as RunPod's documents of August 2026 give them.
Jobs are moved by real workers, or by the test (`begin`, `finish` …).
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

ENDPOINT = "ep"
KEY = "rp-test-key-91f0"
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
POOL = "ADA_80_PRO"
PRICE_MICRO_USD_PER_HOUR = 4_180_000
KEPT = timedelta(minutes=30)
"""How long a result is kept after its end."""
LONGEST_MS = 7 * 24 * 3600 * 1000
_DEFAULT_POLICY = {"executionTimeout": 600_000, "ttl": 86_400_000}
_POLL_S = 2.0
"""How long a poll without news is held open."""
_WORKERS_SIDE = frozenset({"job-take", "job-stop", "job-done", "ping"})
_HOOK_TRIES = 3


@dataclass
class QueuedJob:
    """One job; `stored` is what a client submitted, beside `input` too."""

    id: str
    stored: dict[str, Any]
    queued: datetime
    status: str = "IN_QUEUE"
    started: datetime | None = None
    ended: datetime | None = None
    output: Any = None
    error: str | None = None
    progress: list[Any] = field(default_factory=list[Any])
    stop_wanted: bool = False
    stop_pod: bool = False

    @property
    def ref(self) -> str:
        """As our adapter and the bill name it."""
        return f"{ENDPOINT}/{self.id}"

    @property
    def label(self) -> str:
        """What we called it."""
        given: dict[str, Any] = self.stored["input"]
        return str(given.get("label", ""))

    @property
    def policy(self) -> dict[str, int]:
        """Its limits in milliseconds."""
        return {**_DEFAULT_POLICY, **self.stored.get("policy", {})}

    def view(self, *, with_input: bool) -> dict[str, Any]:
        """As `/status` shows it."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status}
        if with_input:
            shown["input"] = {name: value for name, value in self.stored["input"].items() if name != "token"}
        if self.started is not None:
            shown["delayTime"] = _ms(self.started - self.queued)
            if self.ended is not None:
                shown["executionTime"] = _ms(self.ended - self.started)
        if self.output is not None:
            shown["output"] = self.output
        if self.error is not None:
            shown["error"] = self.error
        return shown


class RunPodQueue(Simulator):
    """One endpoint with its queue."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.jobs: dict[str, QueuedJob] = {}
        self.late_progress = 0
        """Progress that came after its job's end and was dropped."""
        self.shows_input = True
        """Whether status and list show a job's input; RunPod documents neither."""
        self.has_list = True
        """Whether `/requests` is answered."""
        self.copies = 1
        """How often each webhook is sent."""
        self.hook_pause_s = 0.05
        """Between the tries of a webhook: 10 s at RunPod."""
        self.hooks: list[tuple[str, bytes, int]] = []
        """Address, body and status of each webhook that was sent."""
        self._sending: list[threading.Thread] = []

    @property
    def api_url(self) -> str:
        """For `RUNPOD_ENDPOINT_BASE_URL`."""
        return f"{self.url}/v2"

    @property
    def control_url(self) -> str:
        """RunPod's REST API, which has another host there."""
        return f"{self.url}/control/v2"

    def worker_environment(self) -> dict[str, str]:
        """What RunPod sets for a serverless worker. The dollar names are replaced by the worker itself."""
        base = f"{self.api_url}/{ENDPOINT}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "2000",
            "RUNPOD_POD_ID": "worker-1",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def is_create(self, call: Call) -> bool:
        return call.path == f"/v2/{ENDPOINT}/run"

    def apply(self, call: Call, route: Callable[[Call], Answer]) -> Answer:
        """Faults are the clients' lot; workers stand inside."""
        parts = call.path.strip("/").split("/")
        return route(call) if len(parts) > 2 and parts[2] in _WORKERS_SIDE else super().apply(call, route)

    # ---- what happens to jobs ----------------------------------------------------------------------------------------

    def submit(self, body: dict[str, Any]) -> QueuedJob:
        """Queue a job as `/run` does."""
        job = QueuedJob(f"{uuid.uuid4().hex[:12]}-u1", body, self.clock())
        with self.changed:
            self.jobs[job.id] = job
            self.changed.notify_all()
        return job

    def of(self, attempt_hex: str) -> list[QueuedJob]:
        """Every job whose label holds this, oldest first."""
        return [job for job in self.jobs.values() if attempt_hex in job.label]

    def await_end(self, job_id: str, limit_s: float = 180) -> QueuedJob:
        """The job once it has a final status."""
        self.wait_until(lambda: self.jobs[job_id].status in FINAL, f"job {job_id} ends", limit_s)
        return self.jobs[job_id]

    def begin(self, job: QueuedJob) -> None:
        """A worker takes it: from now on it costs."""
        with self.changed:
            if job.status == "IN_QUEUE":
                job.status, job.started = "IN_PROGRESS", self.clock()
                self.bill.start(job.ref, job.label, PRICE_MICRO_USD_PER_HOUR)

    def finish(self, job: QueuedJob, output: Any = None, error: str | None = None) -> None:
        """Its handler came to an end."""
        self._end(job, "COMPLETED" if error is None else "FAILED", output=output, error=error)

    def crash(self, job: QueuedJob) -> None:
        """The worker died under it."""
        self._end(job, "FAILED", error="worker exited with exit code 137")

    def forget(self, job: QueuedJob) -> None:
        """Its ttl, or the time that results are kept, is over: running or not, it is deleted."""
        with self.changed:
            if job.started is not None:
                self.bill.end(job.ref)
            del self.jobs[job.id]
            self.changed.notify_all()

    def _end(self, job: QueuedJob, status: str, *, output: Any = None, error: str | None = None) -> None:
        with self.changed:
            if job.status in FINAL:
                return
            job.status, job.ended = status, self.clock()
            job.output, job.error = output, error
            if job.started is not None:
                self.bill.end(job.ref)
            self.changed.notify_all()
        self._tell(job)

    def _pass_time(self) -> None:
        """What RunPod does by itself: limits that are over, results that are old."""
        now = self.clock()
        for job in list(self.jobs.values()):
            limits = {name: timedelta(milliseconds=ms) for name, ms in job.policy.items() if name in _DEFAULT_POLICY}
            over = job.status in FINAL
            if now - job.queued > limits["ttl"] or (job.ended is not None and now - job.ended > KEPT):
                self.forget(job)
            elif not over and job.started is not None and now - job.started > limits["executionTimeout"]:
                job.stop_wanted = True
                self._end(job, "TIMED_OUT", error="job timed out")

    # ---- webhooks ----------------------------------------------------------------------------------------------------

    def _tell(self, job: QueuedJob) -> None:
        url = job.stored.get("webhook")
        if not url:
            return
        body = json.dumps(job.view(with_input=False)).encode()
        thread = threading.Thread(target=self._deliver, args=(str(url), body), daemon=True)
        self._sending.append(thread)
        thread.start()

    def _deliver(self, url: str, body: bytes) -> None:
        for _copy in range(self.copies):
            for _try in range(_HOOK_TRIES):
                try:
                    status = httpx.post(url, content=body, headers={"Content-Type": "application/json"}).status_code
                except httpx.HTTPError:
                    status = 0
                with self.changed:
                    self.hooks.append((url, body, status))
                    self.changed.notify_all()
                if status == 200 or self.ended.wait(self.hook_pause_s):
                    break

    def settle(self) -> None:
        """Waits until every webhook was sent."""
        for thread in self._sending:
            thread.join(30)

    # ---- the job API -------------------------------------------------------------------------------------------------

    def route(self, call: Call) -> Answer:
        with self.changed:
            self._pass_time()
        parts = call.path.strip("/").split("/")
        if call.headers.get("authorization", "").removeprefix("Bearer ") != KEY:
            return Answer(401, {"error": "unauthorized"})
        if parts[:2] == ["control", "v2"]:
            return self._control("/".join(parts[2:]))
        if parts[:2] != ["v2", ENDPOINT]:
            return Answer(404, {"error": "no such endpoint"})
        operation, *rest = parts[2:]
        worker: dict[str, Callable[[], Answer]] = {
            "job-take": self._take,
            "job-stop": self._stops,
            "job-done": lambda: self._done(rest[-1], call),
            "ping": lambda: Answer(200, {}),
        }
        client: dict[str, Callable[[], Answer]] = {
            "run": lambda: self._run(call.json()),
            "status": lambda: self._about(rest[0], self._status),
            "cancel": lambda: self._about(rest[0], self._cancel),
            "retry": lambda: self._about(rest[0], self._retry),
            "purge-queue": self._purge,
            "health": lambda: Answer(200, self._health()),
        }
        if self.has_list:
            client["requests"] = self._requests
        known = {**worker, **client}
        return known[operation]() if operation in known else Answer(404, {"error": operation})

    def _control(self, path: str) -> Answer:
        price = PRICE_MICRO_USD_PER_HOUR / 1_000_000
        gpu = {"id": "NVIDIA H100 80GB HBM3", "pool": POOL, "memory": 80, "price": {"serverless": price}}
        known: dict[str, Any] = {
            "catalog/gpus": {"gpus": [{**gpu, "availability": "HIGH"}, {"id": "NVIDIA A40", "pool": "AMPERE_48"}]},
            "serverless": {"serverless": [{"id": ENDPOINT}]},
            f"serverless/{ENDPOINT}": {"id": ENDPOINT, "gpu": {"pools": [POOL], "count": 1}},
        }
        if path in known:
            return Answer(200, known[path])
        return Answer(404, {"title": "Not Found", "status": 404, "detail": path})

    def _run(self, body: dict[str, Any]) -> Answer:
        if "input" not in body:
            return Answer(400, {"error": "input is required"})
        if max(body.get("policy", {}).get(name, 0) for name in _DEFAULT_POLICY) > LONGEST_MS:
            return Answer(400, {"error": "policy: at most 7 days"})
        return Answer(200, {"id": self.submit(body).id, "status": "IN_QUEUE"})

    def _about(self, job_id: str, answer: Callable[[QueuedJob], Answer]) -> Answer:
        with self.changed:
            job = self.jobs.get(job_id)
            return answer(job) if job is not None else Answer(404, {"error": "job not found"})

    def _status(self, job: QueuedJob) -> Answer:
        return Answer(200, job.view(with_input=self.shows_input))

    def _cancel(self, job: QueuedJob) -> Answer:
        if job.status not in FINAL:
            job.stop_wanted = job.status == "IN_PROGRESS"
            self._end(job, "CANCELLED", output=job.output)
        return Answer(200, {"id": job.id, "status": job.status})

    def _retry(self, job: QueuedJob) -> Answer:
        if job.status not in {"FAILED", "TIMED_OUT"}:
            return Answer(400, {"error": "only failed jobs can be retried"})
        job.status, job.started, job.ended, job.output, job.error = "IN_QUEUE", None, None, None, None
        return Answer(200, {"id": job.id, "status": "IN_QUEUE"})

    def _purge(self) -> Answer:
        with self.changed:
            waiting = [job for job in self.jobs.values() if job.status == "IN_QUEUE"]
            for job in waiting:
                self.forget(job)
        return Answer(200, {"removed": len(waiting), "status": "completed"})

    def _requests(self) -> Answer:
        with self.changed:
            return Answer(200, {"requests": [{"id": job.id, "status": job.status} for job in self.jobs.values()]})

    def _health(self) -> dict[str, Any]:
        counts = [job.status for job in self.jobs.values()]
        states = {"completed": "COMPLETED", "failed": "FAILED", "inProgress": "IN_PROGRESS", "inQueue": "IN_QUEUE"}
        return {
            "jobs": {**{name: counts.count(status) for name, status in states.items()}, "retried": 0},
            "workers": {"idle": 1, "running": 0},
        }

    # ---- the workers' side -------------------------------------------------------------------------------------------

    def _held(self, find: Callable[[], Any]) -> Any:
        """A long poll: the first thing `find` finds, or None when the poll's time is up."""
        end = time.monotonic() + _POLL_S
        with self.changed:
            while (found := find()) is None and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
            return found

    def _take(self) -> Answer:
        def next_job() -> QueuedJob | None:
            waiting = next((job for job in self.jobs.values() if job.status == "IN_QUEUE"), None)
            if waiting is not None:
                self.begin(waiting)
            return waiting

        job = self._held(next_job)
        return Answer(204, "") if job is None else Answer(200, {**job.stored, "id": job.id})

    def _stops(self) -> Answer:
        def wanted() -> list[str] | None:
            found = [job.id for job in self.jobs.values() if job.stop_wanted]
            for job_id in found:
                self.jobs[job_id].stop_wanted = False
            return found or None

        found = self._held(wanted)
        return Answer(204, "") if found is None else Answer(200, {"jobsToStop": found})

    def _done(self, job_id: str, call: Call) -> Answer:
        told = json.loads(call.body)
        with self.changed:
            job = self.jobs.get(job_id)
            if job is None:
                return Answer(404, {"error": "job not found"})
            if told.get("status") == "IN_PROGRESS":
                if job.status in FINAL:
                    self.late_progress += 1
                else:
                    job.progress.append(told["output"])
                    job.output = told["output"]
                return Answer(200, {})
            job.stop_pod = job.stop_pod or bool(told.get("stopPod"))
        self.finish(job, told.get("output"), told.get("error") if "error" in told else None)
        return Answer(200, {})


def _ms(span: timedelta) -> int:
    return round(span.total_seconds() * 1000)
