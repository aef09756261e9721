"""The tutorial's curl lines (brief 000), typed as printed against `tunewright up`, answer in the documented shapes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Road
from tests.support.system import System, await_value, demo_body

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial's lines are curl lines"),
]

JOB_MEMBERS = {
    "job_id",
    "job_type",
    "provider",
    "status",
    "config_name",
    "created_at",
    "started_at",
    "completed_at",
    "cost_usd",
    "hardware_type",
    "error_message",
    "output_url",
    "user_id",
    "metadata",
    "is_terminal",
    "is_active",
    "duration_seconds",
}


def curl(system: System, *arguments: str) -> Any:
    """Runs curl as the tutorial prints it, with this system's port in place of 8001, and reads the JSON it gives."""
    line = [argument.replace("http://localhost:8001", system.url) for argument in arguments]
    done = subprocess.run(["curl", "-s", *line], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def submit(system: System, body: dict[str, Any]) -> Any:
    """The tutorial's submit line."""
    return curl(
        system,
        "-X",
        "POST",
        "http://localhost:8001/api/cloud/jobs/submit?provider=local",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    )


@pytest.fixture(scope="module")
def waiting_job(system: System, pictures: Path) -> str:
    """A job that will not end by itself soon."""
    return submit(system, demo_body(pictures, max_train_steps=100_000))["job_id"]


def test_submit_inline_answers_success_and_a_job_id(system: System, waiting_job: str) -> None:
    assert waiting_job
    assert system.job(waiting_job)["job_id"] == waiting_job


def test_details_have_every_documented_member(system: System, waiting_job: str) -> None:
    job = curl(system, f"http://localhost:8001/api/cloud/jobs/{waiting_job}")["job"]
    assert set(job) >= JOB_MEMBERS
    assert job.get("upload_token") is None
    assert job["provider"] == "local"
    assert job["is_terminal"] is False


def test_list_and_sync_active_show_the_job_and_a_true_total(system: System, waiting_job: str) -> None:
    for query in ("limit=10", "sync_active=true"):
        answer = curl(system, f"http://localhost:8001/api/cloud/jobs?{query}")
        assert waiting_job in [job["job_id"] for job in answer["jobs"]]
        assert answer["total"] >= len(answer["jobs"])


def test_cancel_then_delete(system: System, waiting_job: str) -> None:
    system.await_status(waiting_job, "running", limit_s=300)
    early = curl(system, "-X", "DELETE", f"http://localhost:8001/api/cloud/jobs/{waiting_job}")
    assert early["success"] is False
    assert early["code"] == "invalid_job_state"
    answer = curl(system, "-X", "POST", f"http://localhost:8001/api/cloud/jobs/{waiting_job}/cancel")
    assert (answer["success"], answer["job_id"], answer["status"]) == (True, waiting_job, "cancelled")
    system.await_status(waiting_job, "cancelled", limit_s=300)
    (attempt,) = {
        event["stream"].removeprefix("attempt-")
        for event in system.history(waiting_job)
        if event["stream"].startswith("attempt-")
    }
    assert system.trainer_processes(attempt) == []
    deleted = curl(system, "-X", "DELETE", f"http://localhost:8001/api/cloud/jobs/{waiting_job}")
    assert deleted == {"success": True, "job_id": waiting_job}

    def is_listed() -> bool:
        listed = curl(system, "http://localhost:8001/api/cloud/jobs?limit=100")
        return waiting_job in [job["job_id"] for job in listed["jobs"]]

    await_value(60, "the job is listed no more", lambda: not is_listed())


def test_logs_are_text_under_logs(system: System, road: Road) -> None:
    answer = curl(system, f"http://localhost:8001/api/cloud/jobs/{road.job_id}/logs")
    assert answer["job_id"] == road.job_id
    assert answer["logs"].strip()


def test_same_idempotency_key_answers_the_same_job(system: System, pictures: Path) -> None:
    body = {**demo_body(pictures, max_train_steps=1), "idempotency_key": "ci-build-12345"}
    first, second = submit(system, body), submit(system, body)
    assert first["job_id"] == second["job_id"]
    assert (first.get("idempotent_hit", False), second["idempotent_hit"]) == (False, True)
    reused = submit(system, {**body, "tracker_run_name": "another"})
    assert reused["code"] == "idempotency_key_reused"
    assert reused["success"] is False


def test_saved_config_is_submitted_by_name(system: System, pictures: Path) -> None:
    body = demo_body(pictures, max_train_steps=1)
    folder = Path(system.data_dir) / "configs" / "my-training-config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(body["config"]), encoding="utf-8")
    (folder / "multidatabackend.json").write_text(json.dumps(body["dataloader_config"]), encoding="utf-8")
    answer = submit(system, {"config_name_to_load": "my-training-config", "tracker_run_name": "api-test-run"})
    assert answer["success"] is True, answer
    job = system.job(answer["job_id"])
    assert job["config_name"] == "my-training-config"
    assert job["metadata"]["tracker_run_name"] == "api-test-run"
    system.await_status(answer["job_id"], "completed")


def test_unknown_key_and_wrong_type_name_the_field(system: System, pictures: Path) -> None:
    body = demo_body(pictures)
    unknown = submit(system, {**body, "colour": "red"})
    assert unknown["status"] == 400
    assert "colour" in json.dumps(unknown["errors"])
    wrong = submit(system, {**body, "tracker_run_name": 7})
    assert "tracker_run_name" in json.dumps(wrong["errors"])
    misspelt = demo_body(pictures, lora_rnak=16)
    refused = submit(system, misspelt)
    assert refused["code"] == "invalid_config"
    assert "lora_rank" in json.dumps(refused)
