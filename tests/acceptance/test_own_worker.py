"""A real job on an own worker: the machine pulls it, trains, survives kills on both sides, and the model comes home."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.system import ROOT, TRAINER_PYTHON, System, await_value, demo_body

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Machine:
    """`tunewright worker` in a folder of its own."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        answer = system.http.post("/api/admin/workers", json={"name": "desk", "labels": {"site": "lab"}}).json()
        self.worker_id = answer["worker_id"]
        self._token = folder / "token"
        self._token.write_text(answer["token"], encoding="utf-8")
        self._token.chmod(0o600)

    def start(self) -> None:
        command = [sys.executable, "-m", "services.cli", "worker", "--server", self._system.url]
        options = ["--token-file", self._token, "--state-dir", self._folder / "state", "--label", "team=art"]
        env = {**os.environ, "BRIDGE_TRAINER_PYTHON": str(TRAINER_PYTHON)}
        with (self._folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen([*map(str, [*command, *options])], cwd=ROOT, env=env, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def listed(self) -> dict[str, object]:
        workers = self._system.http.get("/api/admin/workers").raise_for_status().json()["workers"]
        return next(one for one in workers if one["worker_id"] == self.worker_id)

    def starts(self) -> int:
        files = (self._folder / "state" / "attempts").glob("*/starts.jsonl")
        return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


@pytest.fixture
def machine(system: System, tmp_path: Path) -> Generator[Machine]:
    made = Machine(system, tmp_path)
    made.start()
    yield made
    made.kill()


def test_a_job_trains_on_an_own_worker_through_kills_on_both_sides(
    system: System, machine: Machine, pictures: Path
) -> None:
    await_value(60, "the worker is idle", lambda: machine.listed()["status"] == "idle")
    body = demo_body(pictures, max_train_steps=60, checkpointing_steps=20, validation_disable=True)
    answer = system.http.post("/api/cloud/jobs/submit", params={"provider": "worker"}, json=body).json()
    assert answer["success"] is True, answer
    job_id = answer["job_id"]
    system.await_status(job_id, "running")
    await_value(120, "a training step is reported", lambda: system.metrics(job_id))
    assert machine.listed()["current_job_id"] == job_id

    machine.kill()
    for victim in ("provider_bridge", "gateway"):
        system.await_restarted(victim, system.kill(victim))
    assert machine.starts() == 1
    machine.start()

    job = system.await_status(job_id, "completed")
    assert job["provider"] == "worker"
    await_value(60, "the worker is idle again", lambda: machine.listed()["status"] == "idle")
    told = [event["type"] for event in system.history(job_id)]
    assert told.count("attempt.requested.v1") == 1
    assert told.count("attempt.succeeded.v1") == 1
    files = system.http.get(f"/api/v1/jobs/{job_id}/artifacts").raise_for_status().json()["artifacts"]
    assert any(file["name"].endswith(".safetensors") for file in files)
    assert machine.listed()["labels"] == {"site": "lab", "team": "art"}
