"""SkyPilot's API server on loopback, as the real one (0.14.1) answers: requests with outcomes, and managed jobs.

Beside the faults of `tests.simulators.faults`: launches that stay on their way, requests that a restart broke off,
no controller, which is an error of its own.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

TOKEN = "sky_token-of-a-test-90be"
OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "FAILED_SETUP", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER"})
MACHINES: dict[str, list[list[Any]]] = {
    "A10G": [
        ["AWS", "g5.xlarge", "A10G", 1.0, 4.0, 22.4, 16.0, 1.006, 0.31, "us-east-1"],
        ["RunPod", "1x_A10G", "A10G", 1.0, 8.0, 24.0, 32.0, 0.9, 0.3, "US"],
        ["AWS", "g5.12xlarge", "A10G", 4.0, 48.0, 22.4, 192.0, 5.672, 1.7, "us-east-1"],
    ],
    "L4": [["GCP", "g2-standard-4", "L4", 0.5, 4.0, 24.0, 16.0, 0.35, 0.1, "us-central1"]],
}
PRICE = 900_000


class SkyFailed(Exception):  # noqa: N818 - what a request may come to
    """The outcome of a request that failed: the type's name and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass
class Request:
    """One call and what came of it."""

    id: str
    name: str
    body: dict[str, Any]
    outcome: Callable[[], Any] | None
    """None: it is still on its way."""


@dataclass
class ManagedJob:
    """One managed job."""

    id: int
    name: str
    task: dict[str, Any]
    submitted_at: datetime
    status: str = "PENDING"
    reason: str = ""
    lines: list[str] = field(default_factory=list[str])
    started_at: datetime | None = None
    ended_at: datetime | None = None


class SkyPilot(Simulator):
    """One API server."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.jobs: list[ManagedJob] = []
        self.sent: dict[str, Request] = {}
        self.launch_failure: SkyFailed | None = None
        self.slow = False
        """Launches stay on their way until `arrive`."""

    def is_create(self, call: Call) -> bool:
        return call.path == "/jobs/launch"

    def refusal(self, status: int) -> Answer:
        return Answer(status, {"detail": f"simulated {status}"})

    def arrive(self) -> None:
        """Every launch on its way becomes a job."""
        with self.changed:
            for request in self.sent.values():
                if request.outcome is None:
                    request.outcome = self._done(self._create(request.body))

    def begin(self, job: ManagedJob) -> None:
        with self.changed:
            if job.status not in OVER and job.started_at is None:
                job.status, job.started_at = "RUNNING", self.clock()
                self.bill.start(job.name, job.name, PRICE)

    def end(self, job: ManagedJob, status: str, reason: str = "") -> None:
        with self.changed:
            if job.status in OVER:
                return
            if job.started_at is not None:
                self.bill.end(job.name)
            job.status, job.reason, job.ended_at = status, reason, self.clock()

    def route(self, call: Call) -> Answer:
        if call.path == "/api/health" and not call.headers.get("authorization", "").startswith("Bearer sky_"):
            return Answer(401, {"detail": "Authentication required"})
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            return Answer(401, {"detail": "Invalid service account token"})
        with self.changed:
            routes: dict[str, Callable[[Call], Answer]] = {
                "/api/health": lambda _: Answer(200, {"status": "healthy", "version": "0.14.1", "user": None}),
                "/api/get": self._get,
                "/api/status": lambda _: Answer(200, [_shown(one) for one in self.sent.values() if not one.outcome]),
                "/api/cancel": self._request("sky.api_cancel", self._forget),
                "/jobs/launch": self._request("sky.jobs.launch", self._launch),
                "/jobs/queue/v2": self._request("sky.jobs.queue_v2", self._queue),
                "/jobs/cancel": self._request("sky.jobs.cancel", self._cancel),
                "/jobs/logs": self._logs,
                "/list_accelerators": self._request("sky.list_accelerators", lambda _: MACHINES),
            }
            known = routes.get(call.path)
            return known(call) if known is not None else Answer(404, {"detail": "Not Found"})

    def _request(self, name: str, act: Callable[[dict[str, Any]], Any]) -> Callable[[Call], Answer]:
        def take(call: Call) -> Answer:
            body = call.json()
            if "SKYPILOT_USER_ID" not in body.get("env_vars", {}):
                return Answer(500, body=b"KeyError: 'SKYPILOT_USER_ID'")
            request = Request(str(uuid.uuid4()), name, body, None)
            self.sent[request.id] = request
            if not (self.slow and name == "sky.jobs.launch"):
                try:
                    request.outcome = self._done(act(body))
                except SkyFailed as failed:
                    request.outcome = self._failed(failed)
            return Answer(200, None, headers={"X-Skypilot-Request-ID": request.id})

        return take

    @staticmethod
    def _done(value: Any) -> Callable[[], Any]:
        return lambda: value

    @staticmethod
    def _failed(error: SkyFailed) -> Callable[[], Any]:
        def outcome() -> Any:
            raise error

        return outcome

    def _get(self, call: Call) -> Answer:
        request = self.sent.get(call.query.get("request_id", ""))
        if request is None:
            return Answer(404, {"detail": "Request not found"})
        if request.outcome is None:  # the real server holds its answer back; a proxy in between does not wait for ever
            return Answer(504, body=b"<html>gateway time-out</html>", headers={"Content-Type": "text/html"})
        try:
            value = request.outcome()
        except SkyFailed as failed:
            told = {"object": "gASVpickle", "type": failed.kind, "message": failed.message}
            return Answer(500, {"detail": {**_shown(request), "status": "FAILED", "error": json.dumps(told)}})
        return Answer(200, {**_shown(request), "status": "SUCCEEDED", "return_value": json.dumps(value)})

    def _launch(self, body: dict[str, Any]) -> Any:
        if self.launch_failure is not None:
            raise self.launch_failure
        return self._create(body)

    def _create(self, body: dict[str, Any]) -> Any:
        _header, task = (json.loads(document) for document in body["task"].split("\n---\n"))
        self.jobs.append(ManagedJob(len(self.jobs) + 1, body["name"], task, self.clock()))
        return {"job_id": [self.jobs[-1].id], "handle": "gASVpickle"}

    def _queue(self, body: dict[str, Any]) -> Any:
        if not self.jobs:
            raise SkyFailed("ClusterNotUpError", "No in-progress managed jobs.")
        found = [
            self._record(job)
            for job in reversed(self.jobs)
            if (body.get("name_match") or "") in job.name and not (body.get("skip_finished") and job.status in OVER)
        ]
        return {"jobs": found, "total": len(found), "total_no_filter": len(self.jobs), "status_counts": {}}

    def _record(self, job: ManagedJob) -> dict[str, Any]:
        def seconds(moment: datetime | None) -> float | None:
            return self.shown(moment).timestamp() if moment is not None else None

        return {
            "job_id": job.id,
            "job_name": job.name,
            "status": job.status,
            "submitted_at": seconds(job.submitted_at),
            "start_at": seconds(job.started_at),
            "end_at": seconds(job.ended_at),
            "failure_reason": job.reason or None,
            "details": None,
        }

    def _cancel(self, body: dict[str, Any]) -> Any:
        for job in self.jobs:
            if job.id in (body.get("job_ids") or []):
                self.end(job, "CANCELLED")

    def _forget(self, body: dict[str, Any]) -> Any:
        ids: list[str] = body.get("request_ids", [])
        known = [self.sent.pop(one, None) for one in ids]
        return [one.id for one in known if one is not None]

    def _logs(self, call: Call) -> Answer:
        job = next((one for one in self.jobs if one.id == call.json().get("job_id")), None)
        text = "".join(f"{line}\n" for line in job.lines) if job is not None else "Job not found\n"
        return Answer(200, body=text.encode(), headers={"Content-Type": "text/plain; charset=utf-8"})


def _shown(request: Request) -> dict[str, Any]:
    return {
        "request_id": request.id,
        "name": request.name,
        "request_body": json.dumps(request.body),
        "status": "RUNNING",
        "return_value": "null",
        "error": "null",
    }
