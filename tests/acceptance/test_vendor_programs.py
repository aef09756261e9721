"""A job of a running control plane is trained inside the vendors' own programs, and comes home."""

import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.runpod_queue import KEY, RunPodQueue
from tests.support.system import System, demo_body
from tests.vendors.programs import ROOT, environment, running, vendors_python
from tests.vendors.test_cog import FOLDER, cog
from tests.vendors.test_runpod import HANDLER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LORA = "pytorch_lora_weights.safetensors"


@dataclass
class Site:
    """The control plane with both vendors' programs beside it."""

    system: System
    queue: RunPodQueue
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    folder = tmp_path_factory.mktemp("vendors")
    with (
        RunPodQueue() as queue,
        running(
            [vendors_python(), HANDLER],
            environment(folder / "runpod", **queue.worker_environment()),
            folder / "worker",
            lambda: any("/job-take/" in call.path for call in queue.calls),
        ),
        cog("train", f"{FOLDER}/train.py:train", folder / "cog", f"{queue.url}/nowhere/") as container,
    ):
        stand_in = folder / "trainer-python"
        words = [vendors_python(), str(ROOT / "tests" / "vendors" / "hand_over.py"), queue.api_url]
        # The bridge runs `PYTHON -m trainer run ...`: its first two words are not for this program.
        script = f'shift 2\nexec {shlex.join([*words, str(container.base_url).rstrip("/")])} "$@"\n'
        stand_in.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
        stand_in.chmod(0o755)
        system = System(folder, {"BRIDGE_TRAINER_PYTHON": str(stand_in), "TRAINER_TEST_RUNPOD_KEY": KEY})
        system.start()
        try:
            yield Site(system, queue, folder)
        finally:
            system.stop()


@pytest.mark.parametrize("vendor", ["runpod", "cog"])
def test_a_job_is_trained_in_the_vendors_program_and_its_lora_comes_home(
    site: Site, vendor: str, pictures: Path
) -> None:
    system = site.system
    short: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 2, "validation_disable": True}
    job_id = system.submit(demo_body(pictures, **short, disable_benchmark=True, modelspec_comment=vendor))
    job = system.await_status(job_id, "completed")
    assert [line["step"] for line in system.metrics(job_id)] == [1, 2, 3, 4]
    listed = system.http.get(f"/api/v1/jobs/{job_id}/artifacts").raise_for_status().json()["artifacts"]
    (lora,) = [item for item in listed if item["name"] == LORA]
    content = system.http.get(f"/api/cloud/storage/{lora['bucket']}/{lora['object_key']}").raise_for_status().content
    assert vendor.encode() in content, "the vendor's job wrote this file"
    assert job["output_url"]
    told = [event["type"] for event in system.history(job_id)]
    assert "attempt.succeeded.v1" in told
    if vendor == "runpod":
        (queued,) = site.queue.jobs
        ran = site.queue.await_end(queued)
        assert (ran.status, ran.output["exit_code"]) == ("COMPLETED", 0)
