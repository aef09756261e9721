"""`kill -9` of any one service while a job runs: the job completes once, and nothing is lost or doubled."""

from pathlib import Path

import pytest

from tests.support.system import System, await_value, demo_body

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SERVICES = ["gateway", "scheduler", "provider_bridge", "storage", "billing", "relay"]


@pytest.mark.parametrize("victim", SERVICES)
def test_killed_service_while_training_job_completes_once(system: System, pictures: Path, victim: str) -> None:
    job_id = system.submit(demo_body(pictures, max_train_steps=60, checkpointing_steps=20, validation_disable=True))
    system.await_status(job_id, "running")
    await_value(120, "a training step is reported", lambda: system.metrics(job_id))
    attempt = _attempt(system, job_id)
    trainers = set(system.trainer_processes(attempt))
    assert len(trainers) == 1

    dead = system.kill(victim)
    system.await_restarted(victim, dead)

    def completed() -> bool:
        trainers.update(system.trainer_processes(attempt))
        return system.job(job_id)["status"] == "completed"

    await_value(300, "the job completes", completed)
    assert len(trainers) == 1
    await_value(120, "billing has settled the job", lambda: "account.funds_captured.v1" in _told(system, job_id))

    told = _told(system, job_id)
    assert told.count("job.completed.v1") == 1
    assert told.count("attempt.requested.v1") == 1
    assert told.count("attempt.succeeded.v1") == 1
    assert told.count("account.funds_captured.v1") == 1
    assert system.job(job_id)["cost_usd"] > 0
    starts = (system.data_dir / "bridge" / "attempts" / attempt / "starts.jsonl").read_text(encoding="utf-8")
    assert len(starts.splitlines()) == 1
    assert _stored(system, job_id) == [line["seq"] for line in system.spooled_lines(attempt)]


def _told(system: System, job_id: str) -> list[str]:
    """The types of the job's events, in log order."""
    return [event["type"] for event in system.history(job_id)]


def _attempt(system: System, job_id: str) -> str:
    """The id of the job's only attempt."""
    (requested,) = (event for event in system.history(job_id) if event["type"] == "attempt.requested.v1")
    return requested["stream"].removeprefix("attempt-")


def _stored(system: System, job_id: str) -> list[int]:
    """The seq of every report line that storage has, in the order it would be read."""
    answer = system.http.get(f"/api/v1/jobs/{job_id}/reports", params={"limit": 10_000}).raise_for_status().json()
    return [line["seq"] for line in answer["lines"]]
