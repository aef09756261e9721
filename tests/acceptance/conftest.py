"""One running Tunewright for the acceptance tests, and one finished demo job watched while it ran."""

import json
import subprocess
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import BASE_MODEL, ROOT, TRAINER_PYTHON, System, await_value, demo_body, demo_pictures


@dataclass
class Road:
    """The demo job after its end: how it looked at each moment, and what it left."""

    job: dict[str, Any]
    events: list[dict[str, Any]]
    seen: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    """Log position -> the state that the API showed at that position, while it was the newest."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job["job_id"]

    def of_type(self, type_: str) -> list[dict[str, Any]]:
        """The story's events of one type."""
        return [event for event in self.events if event["type"] == type_]

    @property
    def attempt_id(self) -> str:
        """The only attempt's id."""
        (requested,) = self.of_type("attempt.requested.v1")
        return requested["stream"].removeprefix("attempt-")


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Generator[System]:
    """Embedded mode with real parts, stopped at the end of the session."""
    running = System(tmp_path_factory.mktemp("tw"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's training pictures."""
    return demo_pictures(tmp_path_factory.mktemp("pictures") / "digits")


@pytest.fixture(scope="session")
def road(system: System, pictures: Path) -> Road:
    """The demo job from submit to its end, with every state the API showed on the way."""
    job_id = system.submit(demo_body(pictures))
    seen: dict[int, dict[str, Any]] = {}

    def ended() -> bool:
        view = system.http.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()["job"]
        seen[view["position"]] = view
        return bool(view["is_terminal"]) and view["money"]["captured_micro_usd"] is not None  # settled after the end

    await_value(400, "the demo job ends and is paid for", ended)
    return Road(job=system.job(job_id), events=system.history(job_id), seen=seen)


@pytest.fixture(scope="session")
def lora(system: System, road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA file of the demo job, fetched by the CLI."""
    folder = tmp_path_factory.mktemp("lora")
    name = "pytorch_lora_weights.safetensors"
    done = system.tunewright("artifacts", "get", road.job_id, name, "-o", str(folder))
    assert done.returncode == 0, done.stderr
    return next(folder.rglob(name))


@pytest.fixture(scope="session")
def quality(lora: Path, pictures: Path) -> dict[str, Any]:
    """What the trainer's own judge measures of renders with and without the LoRA."""
    command = [TRAINER_PYTHON, "-m", "trainer.quality", "--base", BASE_MODEL, "--lora", lora, "--data", pictures]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=400
    )
    return json.loads(done.stdout)
