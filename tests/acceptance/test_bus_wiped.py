"""All JetStream data deleted while the system runs: transport is rebuilt from the log."""

import shutil
from pathlib import Path

import pytest

from tests.support.system import System, await_value, demo_body

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_wiped_jetstream_is_rebuilt_and_every_read_model_equals_a_fresh_fold(system: System, pictures: Path) -> None:
    job_id = system.submit(demo_body(pictures, max_train_steps=60, checkpointing_steps=20, validation_disable=True))
    system.await_status(job_id, "running")

    dead = system.kill("nats")
    for store in (system.data_dir / "nats").rglob("jetstream"):
        shutil.rmtree(store, ignore_errors=True)
    system.await_restarted("nats", dead)

    system.await_status(job_id, "completed")
    head = system.history(job_id)[-1]["global_position"]
    await_value(60, "the view has passed the job's last event", lambda: _position(system, job_id) >= head)
    report = system.http.post("/api/v1/admin/rebuild", timeout=120).raise_for_status().json()
    projections = [item for service in report["services"].values() for item in service["projections"]]
    assert [item["name"] for item in projections if not item["equal"]] == []
    parked = system.http.get("/api/v1/admin/parked").raise_for_status().json()
    assert not any(service["parked"] for service in parked["services"].values())


def _position(system: System, job_id: str) -> int:
    return system.http.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()["job"]["position"]
