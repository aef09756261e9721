"""RunPod's job queue on loopback, from both sides: the job API that clients call, and what real workers poll and post.

Enough for the vendor's own `runpod.Endpoint` and worker loop; words and shapes as RunPod's documents give them.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulators.loopback import Answer, Call, Loopback

ENDPOINT = "ep"
KEY = "rp-test-key-91f0"
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
_POLL_S = 2.0
"""How long a poll without news is held open."""


@dataclass
class QueuedJob:
    """One job; `stored` is what a client submitted, beside `input` too."""

    id: str
    stored: dict[str, Any]
    status: str = "IN_QUEUE"
    output: Any = None
    error: str | None = None
    progress: list[Any] = field(default_factory=list[Any])
    stop_wanted: bool = False
    stop_pod: bool = False

    def view(self) -> dict[str, Any]:
        """As `/status` shows it."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status, "delayTime": 1, "executionTime": 1}
        if self.output is not None:
            shown["output"] = self.output
        if self.error is not None:
            shown["error"] = self.error
        return shown


class RunPodQueue(Loopback):
    """One endpoint with its queue."""

    def __init__(self) -> None:
        super().__init__(self._route)
        self.jobs: dict[str, QueuedJob] = {}
        self.late_progress = 0
        """Progress that came after its job's end and was dropped."""

    @property
    def api_url(self) -> str:
        """For `RUNPOD_ENDPOINT_BASE_URL`."""
        return f"{self.url}/v2"

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

    def submit(self, body: dict[str, Any]) -> QueuedJob:
        """Queue a job as `/run` does."""
        job = QueuedJob(f"{uuid.uuid4().hex[:12]}-u1", body)
        with self.changed:
            self.jobs[job.id] = job
            self.changed.notify_all()
        return job

    def await_end(self, job_id: str, limit_s: float = 180) -> QueuedJob:
        """The job once it has a final status."""
        self.wait_until(lambda: self.jobs[job_id].status in FINAL, f"job {job_id} ends", limit_s)
        return self.jobs[job_id]

    def _route(self, call: Call) -> Answer:
        parts = call.path.strip("/").split("/")
        if parts[:2] != ["v2", ENDPOINT]:
            return Answer(404, {"error": "no such endpoint"})
        if call.headers.get("authorization", "").removeprefix("Bearer ") != KEY:
            return Answer(401, {"error": "unauthorized"})
        operation, *rest = parts[2:]
        worker: dict[str, Callable[[], Answer]] = {
            "job-take": self._take,
            "job-stop": self._stops,
            "job-done": lambda: self._done(rest[-1], call),
            "ping": lambda: Answer(200, {}),
        }
        client: dict[str, Callable[[], Answer]] = {
            "run": lambda: self._run(call.json()),
            "status": lambda: self._about(rest[0], lambda job: Answer(200, job.view())),
            "cancel": lambda: self._about(rest[0], self._cancel),
            "health": lambda: Answer(200, self._health()),
        }
        known = {**worker, **client}
        return known[operation]() if operation in known else Answer(404, {"error": operation})

    def _run(self, body: dict[str, Any]) -> Answer:
        if "input" not in body:
            return Answer(400, {"error": "input is required"})
        return Answer(200, {"id": self.submit(body).id, "status": "IN_QUEUE"})

    def _about(self, job_id: str, answer: Callable[[QueuedJob], Answer]) -> Answer:
        with self.changed:
            job = self.jobs.get(job_id)
            return answer(job) if job is not None else Answer(404, {"error": "job not found"})

    def _cancel(self, job: QueuedJob) -> Answer:
        if job.status not in FINAL:
            job.stop_wanted = job.status == "IN_PROGRESS"
            job.status = "CANCELLED"
            self.changed.notify_all()
        return Answer(200, job.view())

    def _health(self) -> dict[str, Any]:
        counts = [job.status for job in self.jobs.values()]
        return {
            "jobs": {"completed": counts.count("COMPLETED"), "inProgress": counts.count("IN_PROGRESS")},
            "workers": {"idle": 1, "running": 0},
        }

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
                waiting.status = "IN_PROGRESS"
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
            job = self.jobs[job_id]
            if told.get("status") == "IN_PROGRESS":
                if job.status in FINAL:
                    self.late_progress += 1
                else:
                    job.progress.append(told["output"])
                    job.output = told["output"]
            elif job.status not in FINAL:
                job.status = "FAILED" if "error" in told else "COMPLETED"
                job.output, job.error = told.get("output"), told.get("error")
                job.stop_pod = bool(told.get("stopPod"))
        return Answer(200, {})
