"""The commands of the README, typed against everything real: one job that completes, one that is cancelled."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Shell
from tests.support.system import ROOT, await_value

pytestmark = [pytest.mark.trainer, pytest.mark.slow, pytest.mark.timeout(900)]
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def completed(shell: Shell) -> str:
    """A job that was submitted and followed to its end."""
    done = shell.run("submit", *shell.files("short", max_train_steps=10), "--follow", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["status"] == "completed"
    return job["job_id"]


def test_a_followed_submit_prints_one_json_document_and_the_log_beside_it(shell: Shell, completed: str) -> None:
    logged = shell.run("logs", completed)
    assert logged.returncode == 0
    assert logged.stdout.strip()
    again = shell.run("logs", completed, "-f")
    assert (again.returncode, again.stdout) == (0, logged.stdout)


@pytest.mark.parametrize(
    "command",
    ["ps", "describe JOB", "logs JOB", "events JOB", "events", "artifacts ls JOB", "cost JOB", "queue",
     "queue --at 1", "account", "whatif", "verify", "rebuild", "parked ls"],
)  # fmt: skip
def test_json_is_all_there_is_on_stdout(shell: Shell, completed: str, command: str) -> None:
    done = shell.run(*command.replace("JOB", completed).split(), "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_every_command_takes_the_beginning_of_the_id(shell: Shell, completed: str) -> None:
    told = json.loads(shell.run("describe", completed[:20], "--json").stdout)
    assert told["job"]["job_id"] == completed


def test_the_past_is_told_as_it_was(shell: Shell, completed: str) -> None:
    first = json.loads(shell.run("events", completed, "--limit", "1", "--json").stdout)["events"][0]
    then = json.loads(shell.run("describe", completed, "--at", str(first["global_position"]), "--json").stdout)
    assert then["job"]["status"] in {"pending", "uploading"}


def test_the_lora_is_fetched_whole_and_verified(shell: Shell, completed: str, tmp_path: Path) -> None:
    listed = json.loads(shell.run("artifacts", "ls", completed, "--json").stdout)["artifacts"]
    (wanted,) = [file for file in listed if file["name"] == LORA]
    done = shell.run("artifacts", "get", completed, "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((tmp_path / LORA).read_bytes()).hexdigest() == wanted["sha256"]
    assert len(done.stdout.splitlines()) == len(listed)


def test_a_waiting_submit_of_a_cancelled_job_ends_with_103(shell: Shell) -> None:
    system = shell.system
    env = {**os.environ, "TUNEWRIGHT_URL": system.url, "TUNEWRIGHT_DATA_DIR": str(system.data_dir)}
    command = [sys.executable, "-m", "services.cli", "submit", *shell.files("long", max_train_steps=100_000), "--wait"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        job_id = await_value(120, "the job is listed", lambda: _named(shell, "long"))
        system.await_status(job_id, "running")
        assert shell.run("cancel", job_id).returncode == 0
        assert waiting.wait(180) == 103
    assert shell.run("logs", job_id, "-f").returncode == 103
    assert shell.run("delete", job_id).returncode == 0
    await_value(60, "the job is listed no more", lambda: _named(shell, "long") is None)


def test_ctrl_c_leaves_the_job_running(shell: Shell) -> None:
    system = shell.system
    job_id = shell.run("submit", *shell.files("left", max_train_steps=100_000)).stdout.strip()
    env = {**os.environ, "TUNEWRIGHT_URL": system.url}
    command = [sys.executable, "-m", "services.cli", "logs", job_id, "-f"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 130
    assert system.job(job_id)["is_terminal"] is False
    assert shell.run("cancel", job_id).returncode == 0
    system.await_status(job_id, "cancelled")


def test_a_refused_config_says_which_key(shell: Shell) -> None:
    done = shell.run("submit", *shell.files("bad", max_train_steps=-5))
    assert (done.returncode, done.stdout) == (1, "")
    assert "max_train_steps" in done.stderr


def _named(shell: Shell, name: str) -> str | None:
    jobs = json.loads(shell.run("ps", "--json").stdout)["jobs"]
    return next((job["job_id"] for job in jobs if job["metadata"]["tracker_run_name"] == name), None)
