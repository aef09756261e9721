"""Jobs of a running control plane go to a RunPod pod and to a Lambda machine, are trained there, and nothing stays.

The vendors' APIs are simulators that really run what they are sent: the container's command, and the first boot.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulators import lambda_cloud, runpod_pods
from tests.support.system import System, await_value, demo_body
from tests.vendors.programs import TRAINER_PYTHON, environment
from tests.vendors.test_kaggle import a_repository
from tests.vendors.test_machines import tools_of_a_machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LORA = "pytorch_lora_weights.safetensors"
PROVIDERS = "local,runpod,lambda"
SLACK_S = 15
"""From the end of a machine until the bridge has seen it."""


@dataclass
class Site:
    """The control plane with both vendors beside it."""

    system: System
    pods: runpod_pods.RunPodPods
    machines: lambda_cloud.LambdaCloud


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    folder = tmp_path_factory.mktemp("machines")
    with runpod_pods.RunPodPods() as pods, lambda_cloud.LambdaCloud() as machines:
        pods.per_minute = machines.call_every_s = machines.launch_every_s = None
        pods.command = [str(TRAINER_PYTHON), "-m", "trainer.entry.container"]
        pods.folder, machines.folder = folder / "pods", folder / "lambda"
        pods.machine_env = environment(folder / "work")
        machines.machine_env = tools_of_a_machine(folder)
        settings = {
            "GATEWAY_PROVIDERS": f"{PROVIDERS},auto",
            "SCHEDULER_PROVIDERS": PROVIDERS,
            "RUNPOD_API_KEY": runpod_pods.KEY,
            "TUNEWRIGHT_PROVIDER_RUNPOD_API_URL": pods.url,
            "TUNEWRIGHT_PROVIDER_RUNPOD_IMAGE": "someone/tunewright:1",
            "TUNEWRIGHT_PROVIDER_RUNPOD_CALLS_PER_MINUTE": "600",
            "LAMBDA_API_KEY": lambda_cloud.KEY,
            "TUNEWRIGHT_PROVIDER_LAMBDA_API_URL": machines.url,
            "TUNEWRIGHT_PROVIDER_LAMBDA_GIT_URL": str(a_repository(folder / "repository")),
            "TUNEWRIGHT_PROVIDER_LAMBDA_GIT_REVISION": "release",
            "TUNEWRIGHT_PROVIDER_LAMBDA_CALLS_PER_S": "10",
        }
        system = System(folder, settings)
        settings["TUNEWRIGHT_PUBLIC_URL"] = system.url
        system.start()
        try:
            yield Site(system, pods, machines)
        finally:
            system.stop()


@pytest.mark.parametrize("provider", ["runpod", "lambda"])
def test_a_job_is_trained_on_a_machine_that_is_gone_afterwards_and_metered_until_then(
    site: Site, provider: str, pictures: Path
) -> None:
    system = site.system
    short: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 2, "validation_disable": True}
    body = demo_body(pictures, **short, disable_benchmark=True, modelspec_comment=f"by {provider}")
    job_id = system.submit(body, provider)
    job = system.await_status(job_id, "completed")
    assert job["provider"] == provider
    assert [line["step"] for line in system.metrics(job_id)] == [1, 2, 3, 4]
    listed = system.http.get(f"/api/v1/jobs/{job_id}/artifacts").raise_for_status().json()["artifacts"]
    (lora,) = [item for item in listed if item["name"] == LORA]
    content = system.http.get(f"/api/cloud/storage/{lora['bucket']}/{lora['object_key']}").raise_for_status().content
    assert f"by {provider}".encode() in content, "the machine wrote this file"
    told = await_value(90, "the machine is released", lambda: released(system, job_id))
    bill = site.pods.bill if provider == "runpod" else site.machines.bill
    line = bill.lines[-1]
    assert line.ended is not None, "it costs nothing any more"
    assert line.seconds(line.ended) - 1 <= told["seconds"] <= line.seconds(line.ended) + SLACK_S
    types = [event["type"] for event in system.history(job_id)]
    assert types.count("attempt.succeeded.v1") == types.count("job.completed.v1") == 1


@pytest.mark.parametrize("provider", ["runpod", "lambda"])
def test_a_cancelled_job_leaves_no_machine(site: Site, provider: str, pictures: Path) -> None:
    system = site.system
    body = demo_body(pictures, max_train_steps=100_000, validation_disable=True, disable_benchmark=True)
    job_id = system.submit(body, provider)
    await_value(180, "it trains", lambda: system.metrics(job_id))
    system.http.post(f"/api/cloud/jobs/{job_id}/cancel").raise_for_status()
    system.await_status(job_id, "cancelled")
    bill = site.pods.bill if provider == "runpod" else site.machines.bill
    assert bill.open() == []
    assert len(bill.of(bill.lines[-1].label)) == 1


def test_a_machine_that_cannot_fetch_the_trainer_fails_at_once_and_the_next_one_trains(
    site: Site, pictures: Path
) -> None:
    system, works = site.system, site.machines.machine_env
    site.machines.machine_env = {
        **works,
        "GIT_CONFIG_GLOBAL": "/no/such",
        "GIT_ALLOW_PROTOCOL": "none",
        "TW_TRIES": "1",
    }
    body = demo_body(pictures, max_train_steps=2, validation_disable=True, disable_benchmark=True)
    job_id = system.submit(body, "lambda")

    def failed() -> list[dict[str, Any]]:
        return [event["data"] for event in system.history(job_id) if event["type"] == "attempt.failed.v1"]

    [failure] = await_value(60, "the machine tells that it cannot", failed)
    site.machines.machine_env = works
    assert failure["kind"] == "unreachable"
    assert "could not fetch the trainer" in failure["message"]
    system.await_status(job_id, "completed")
    await_value(60, "no machine is left", lambda: not site.machines.bill.open())


def test_a_job_whose_pod_is_taken_away_finishes_on_another_provider_from_its_last_checkpoint(
    site: Site, pictures: Path
) -> None:
    """It may run anywhere: the pod is the cheaper one; then RunPod has none left, and Lambda is next."""
    system, every, steps = site.system, 100, 600
    short: dict[str, Any] = {"max_train_steps": steps, "checkpointing_steps": every, "validation_disable": True}
    body = demo_body(pictures, **short, train_batch_size=2, disable_benchmark=True)
    for provider in ("runpod", "lambda"):
        await_value(60, "its offers are known", lambda provider=provider: offered(system, provider))
    job_id = system.submit({**body, "requirements": {"min_vram_gb": 24, "providers": ["runpod", "lambda"]}}, "auto")
    await_value(180, "a checkpoint is stored", lambda: saved(system, job_id))
    [pod] = [pod for pod in site.pods.pods.values() if pod.status == "RUNNING"]
    site.pods.has_capacity = False
    site.pods.vanish(pod)
    reached = max(line["step"] for line in system.metrics(job_id))
    system.await_status(job_id, "completed")
    site.pods.has_capacity = True
    told = system.history(job_id)
    placed = [event["data"] for event in told if event["type"] == "job.placed.v1"]
    assert [placed[0]["offer"]["provider"], placed[-1]["offer"]["provider"]] == ["runpod", "lambda"]
    assert placed[0]["offer"]["price_micro_usd_per_hour"] < placed[-1]["offer"]["price_micro_usd_per_hour"]
    assert all(event["reason"] for event in placed)
    last = [event["data"] for event in told if event["type"] == "attempt.requested.v1"][-1]
    assert reached - last["resume"]["step"] <= every
    assert saved(system, job_id)[-1] == steps
    await_value(60, "no machine is left", lambda: not site.machines.bill.open() and not site.pods.bill.open())


def offered(system: System, provider: str) -> list[dict[str, Any]]:
    """The provider's hardware as it was quoted."""
    answer = system.http.get("/api/cloud/hardware-options", params={"provider": provider})
    return answer.raise_for_status().json()["hardware"]


def saved(system: System, job_id: str) -> list[int]:
    """The steps of the checkpoints that are stored."""
    events = [event["data"] for event in system.history(job_id) if event["type"] == "job.checkpointed.v1"]
    return [event["checkpoint"]["step"] for event in events]


def released(system: System, job_id: str) -> dict[str, Any] | None:
    """What the release of the job's machine says, once it is written."""
    events = [event for event in system.history(job_id) if event["type"] == "attempt.machine_released.v1"]
    return events[-1]["data"] if events else None
