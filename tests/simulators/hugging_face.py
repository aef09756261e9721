"""Hugging Face Jobs and Spaces on loopback: takes what the vendor's client creates, and runs a job's command."""

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.simulators.loopback import Answer, Call, Loopback

TOKEN = "hf_token_of_a_test_4412"


@dataclass
class HubJob:
    """One job as it was created."""

    id: str
    namespace: str
    created: dict[str, Any]
    stage: str = "SCHEDULING"
    log: str = ""

    def view(self) -> dict[str, Any]:
        """As the API shows it: never its secrets."""
        shown = {name: value for name, value in self.created.items() if name != "secrets"}
        return {
            "id": self.id,
            "createdAt": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "status": {"stage": self.stage, "message": None},
            "owner": {"id": "1", "name": self.namespace, "type": "user"},
            **shown,
        }


class HuggingFace(Loopback):
    """A Hub with jobs and the pause button of Spaces."""

    def __init__(self) -> None:
        super().__init__(self._route)
        self.jobs: list[HubJob] = []
        self.paused: list[str] = []
        self.failures = 0
        """How many pauses answer 500 before one is done."""

    def execute(self, job: HubJob, folder: Path) -> int:
        """Run the job's command with what the Hub gives a container: its environment, its secrets, its id."""
        folder.mkdir(parents=True, exist_ok=True)
        given = {**job.created["environment"], **job.created.get("secrets", {})}
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "JOB_ID": job.id, **given}
        job.stage = "RUNNING"
        done = subprocess.run(
            [*job.created["command"], *job.created["arguments"]],
            cwd=folder,
            env=env,
            check=False,
            capture_output=True,
            text=True,
        )
        job.stage = "COMPLETED" if done.returncode == 0 else "ERROR"
        job.log = done.stdout + done.stderr
        return done.returncode

    def _route(self, call: Call) -> Answer:
        if call.headers.get("authorization") != f"Bearer {TOKEN}":
            return Answer(401, {"error": "Invalid credentials"})
        parts = call.path.strip("/").split("/")
        if call.method == "POST" and parts[:2] == ["api", "jobs"] and len(parts) == 3:
            self.jobs.append(HubJob(f"job{len(self.jobs) + 1}", parts[2], call.json()))
            return Answer(200, self.jobs[-1].view())
        if call.method == "POST" and parts[:2] == ["api", "spaces"] and parts[-1] == "pause":
            if self.failures:
                self.failures -= 1
                return Answer(500, {"error": "try again"})
            self.paused.append("/".join(parts[2:-1]))
            return Answer(200, {"stage": "PAUSED"})
        return Answer(404, {"error": call.path})
