"""Jobs of a running control plane go to Replicate and RunPod, are trained in the vendors' own programs, and come home.

Its adapters call the vendors' APIs on loopback; their containers and workers, which are real, call its gateway.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulators import replicate, runpod_queue
from tests.simulators.replicate import Replicate
from tests.simulators.replicate_cog import CogContainer
from tests.simulators.runpod_queue import RunPodQueue
from tests.support.system import System, await_value, demo_body
from tests.vendors.programs import environment, running, vendors_python
from tests.vendors.test_cog import FOLDER, cog
from tests.vendors.test_runpod import HANDLER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LORA = "pytorch_lora_weights.safetensors"
PROVIDERS = "local,replicate,runpod_serverless"


@dataclass
class Site:
    """The control plane with both vendors beside it."""

    system: System
    queue: RunPodQueue
    vendor: Replicate


def settings_of(vendor: Replicate, queue: RunPodQueue) -> dict[str, str]:
    """What an operator sets to use both."""
    return {
        "GATEWAY_PROVIDERS": PROVIDERS,
        "SCHEDULER_PROVIDERS": PROVIDERS,
        "REPLICATE_API_TOKEN": replicate.KEY,
        "TUNEWRIGHT_PROVIDER_REPLICATE_API_URL": vendor.api_url,
        "TUNEWRIGHT_PROVIDER_REPLICATE_MODEL": replicate.TRAINER,
        "TUNEWRIGHT_PROVIDER_REPLICATE_DESTINATION": replicate.DESTINATION,
        "RUNPOD_API_KEY": runpod_queue.KEY,
        "TUNEWRIGHT_PROVIDER_RUNPOD_SERVERLESS_API_URL": queue.api_url,
        "TUNEWRIGHT_PROVIDER_RUNPOD_SERVERLESS_CONTROL_URL": queue.control_url,
        "TUNEWRIGHT_PROVIDER_RUNPOD_SERVERLESS_ENDPOINT_ID": runpod_queue.ENDPOINT,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    folder = tmp_path_factory.mktemp("vendors")
    with (
        Replicate() as vendor,
        RunPodQueue() as queue,
        running(
            [vendors_python(), HANDLER],
            environment(folder / "runpod", **queue.worker_environment()),
            folder / "worker",
            lambda: any("/job-take/" in call.path for call in queue.calls),
        ),
        cog("train", f"{FOLDER}/train.py:train", folder / "cog", f"{vendor.url}/up/") as container,
    ):
        CogContainer(vendor, str(container.base_url))
        vendor.copies = queue.copies = 2  # every webhook comes twice
        settings = settings_of(vendor, queue)
        system = System(folder, settings)
        settings["TUNEWRIGHT_PUBLIC_URL"] = system.url  # so that both vendors are given webhooks
        system.start()
        try:
            yield Site(system, queue, vendor)
        finally:
            system.stop()


@pytest.mark.parametrize("provider", ["replicate", "runpod_serverless"])
def test_a_job_is_trained_in_the_vendors_program_and_its_lora_comes_home(
    site: Site, provider: str, pictures: Path
) -> None:
    system = site.system
    await_value(60, "the provider's offer is known", lambda: len(offered(system, provider)) == 1)
    short: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 2, "validation_disable": True}
    body = demo_body(pictures, **short, disable_benchmark=True, modelspec_comment=f"by {provider}")
    job_id = system.submit(body, provider)
    job = system.await_status(job_id, "completed")
    assert job["provider"] == provider
    assert job["output_url"]
    assert [line["step"] for line in system.metrics(job_id)] == [1, 2, 3, 4]
    listed = system.http.get(f"/api/v1/jobs/{job_id}/artifacts").raise_for_status().json()["artifacts"]
    (lora,) = [item for item in listed if item["name"] == LORA]
    content = system.http.get(f"/api/cloud/storage/{lora['bucket']}/{lora['object_key']}").raise_for_status().content
    assert f"by {provider}".encode() in content, "the vendor's job wrote this file"
    bill = site.vendor.bill if provider == "replicate" else site.queue.bill
    (line,) = bill.lines
    assert line.label.startswith("tw-")
    told = await_value(60, "the machine is released", lambda: released(system, job_id))
    assert told["basis"] == "provider"
    assert line.ended is not None
    assert told["seconds"] == math.ceil(line.seconds(line.ended))
    types = [event["type"] for event in system.history(job_id)]
    assert types.count("attempt.succeeded.v1") == types.count("job.completed.v1") == 1
    assert "attempt.webhook_received.v1" in types


def offered(system: System, provider: str) -> list[dict[str, Any]]:
    """The provider's hardware; until it was asked, what providers of its kind are known to have."""
    answer = system.http.get("/api/cloud/hardware-options", params={"provider": provider})
    return answer.raise_for_status().json()["hardware"]


def released(system: System, job_id: str) -> dict[str, Any] | None:
    """What the release of the job's machine says, once it is written."""
    events = [event for event in system.history(job_id) if event["type"] == "attempt.machine_released.v1"]
    return events[-1]["data"] if events else None
