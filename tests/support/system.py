"""The whole of Tunewright as a person runs it: `tunewright up` in a directory of its own, driven over HTTP."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import psutil

from deploy.embedded.process import free_port

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
TRAINER_PYTHON = ROOT / ".venv-trainer" / "bin" / "python"
BASE_MODEL = ROOT / "trainer" / "fixtures" / "tiny-flux-digits"
PRICE_MICRO_USD_PER_HOUR = 3_600_000
"""1000 micro-dollars a second: costs are easy to check by eye."""


def await_value(limit_s: float, what: str, probe: Callable[[], T | None]) -> T:
    """The first value of `probe` that is not None or False, or AssertionError naming what never came."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        value = probe()
        if value:
            return value
        time.sleep(0.05)  # the pace of asking, not a guess at when it is ready
    raise AssertionError(f"not within {limit_s:.0f} s: {what}")


class System:
    """One embedded Tunewright: a supervisor, Postgres, NATS, the relay and five services, all real processes."""

    def __init__(self, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        self._environ = environ or {}
        self.data_dir = home / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts everything and returns when every part is ready."""
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", self.data_dir, "--port", str(self.port)]
        env = {**os.environ, "BILLING_LOCAL_MICRO_USD_PER_HOUR": str(PRICE_MICRO_USD_PER_HOUR), **self._environ}
        with (self.home / "up.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [str(part) for part in command], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )
        await_value(200, "embedded mode is ready", self.is_ready)

    def is_ready(self) -> bool:
        """Whether the gateway says that every part answers."""
        assert self._supervisor is not None
        assert self._supervisor.poll() is None, (self.home / "up.log").read_text(encoding="utf-8")[-4000:]
        try:
            return self.http.get("/api/cloud/health/ready", timeout=10).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Stops everything in order."""
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)
            self._supervisor.wait(120)
        self.http.close()

    @property
    def state(self) -> dict[str, Any]:
        """What embedded mode says of itself: process ids, addresses, the read-only log DSN."""
        return json.loads((self.data_dir / "run" / "state.json").read_text(encoding="utf-8"))

    def process_id(self, name: str) -> int:
        """The process of one child (`scheduler`, `nats`, `postgres` …)."""
        return int(self.state["children"][name]["pid"])

    def kill(self, name: str) -> int:
        """Kills one child with SIGKILL and gives the id it had."""
        victim = self.process_id(name)
        os.kill(victim, signal.SIGKILL)
        return victim

    def await_restarted(self, name: str, dead: int) -> None:
        """Returns when a killed child runs again under another process id and everything is ready."""
        await_value(120, f"{name} runs again", lambda: self.process_id(name) != dead)
        await_value(120, "everything is ready again", self.is_ready)

    def superuser_dsn(self) -> str:
        """Full power over the log's database, for the tests that tamper with it."""
        inspector: str = self.state["log_dsn"]
        secrets = json.loads((self.data_dir / "secrets.json").read_text(encoding="utf-8"))
        _login, _, address = inspector.partition("://")[2].rpartition("@")
        return f"postgresql://postgres:{secrets['postgres']['postgres']}@{address}"

    def tunewright(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the CLI against this system; stdout and stderr are kept apart."""
        env = {**os.environ, "TUNEWRIGHT_URL": self.url, "TUNEWRIGHT_DATA_DIR": str(self.data_dir)}
        command = [sys.executable, "-m", "services.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, body: dict[str, Any], provider: str = "local") -> str:
        """Submits to a provider; gives the job id."""
        answer = self.http.post("/api/cloud/jobs/submit", params={"provider": provider}, json=body)
        assert answer.json().get("success") is True, answer.text
        return cast("str", answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job in the shape that existing scripts read."""
        return self.http.get(f"/api/cloud/jobs/{job_id}").raise_for_status().json()["job"]

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """Every event of the job's story, in log order."""
        return self.http.get(f"/api/v1/jobs/{job_id}/events").raise_for_status().json()["events"]

    def await_status(self, job_id: str, *words: str, limit_s: float = 300) -> dict[str, Any]:
        """The job once its status is one of `words`; an unexpected end fails at once."""

        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in words or not job["is_terminal"], job
            return job if job["status"] in words else None

        return await_value(limit_s, f"job {job_id} is {' or '.join(words)}", reached)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The job's stored metrics reports, oldest first."""
        return self.http.get(f"/api/v1/jobs/{job_id}/metrics").raise_for_status().json()["metrics"]

    def spooled_lines(self, attempt_id: str) -> list[dict[str, Any]]:
        """What the trainer of an attempt wrote into its spool: what must have arrived, each line once."""
        spool = next((self.data_dir / "bridge" / "attempts" / attempt_id).rglob("events.jsonl"))
        return [json.loads(line) for line in spool.read_text(encoding="utf-8").splitlines()]

    def trainer_processes(self, attempt_id: str) -> list[int]:
        """Live processes that run the trainer for an attempt; a trainer's own children are not counted."""
        parents = {
            process.pid: int(process.info["ppid"])
            for process in psutil.process_iter(["cmdline", "ppid"])
            if "trainer" in (process.info["cmdline"] or []) and attempt_id in " ".join(process.info["cmdline"] or [])
        }
        return [pid for pid, parent in parents.items() if parent not in parents]


def demo_pictures(folder: Path) -> Path:
    """100 tinted handwritten digits with captions, drawn once."""
    if not folder.exists():
        command = [TRAINER_PYTHON, "-m", "trainer.demo_data", folder, "--count", "100"]
        subprocess.run([str(part) for part in command], cwd=ROOT, check=True, timeout=300)
    return folder


def demo_body(pictures: Path, **overrides: Any) -> dict[str, Any]:
    """The demo's submit body; overrides are `--key` names without dashes."""
    config = json.loads((ROOT / "trainer" / "demo_config.json").read_text(encoding="utf-8"))
    loader = json.loads((ROOT / "trainer" / "demo_dataloader.json").read_text(encoding="utf-8"))
    config["--pretrained_model_name_or_path"] = str(BASE_MODEL)
    config.update({f"--{name}": value for name, value in overrides.items()})
    loader[0]["instance_data_dir"] = str(pictures)
    return {"config": config, "dataloader_config": loader}
