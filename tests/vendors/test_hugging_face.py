"""The Hugging Face job: created with the vendor's client, its command then run as the Hub would run it."""

import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from services.provider_bridge.outbound.ports import StartOrder, Tag
from services.provider_bridge.outbound.vendors.hugging_face import HuggingFaceSettings
from shared.contracts.run import ExitCode, RunSpec
from shared.ids import new_id
from tests.contract.providers.hugging_face import a_provider
from tests.simulators.hugging_face import TOKEN, HuggingFace
from tests.trainer.receiver import Receiver
from tests.vendors.conftest import JOB_ID, LORA, assert_nowhere, full_config, full_dataloader, sha256
from tests.vendors.programs import ROOT, TRAINER_PYTHON, environment


@pytest.fixture
def hub() -> Generator[HuggingFace]:
    with HuggingFace() as running:
        yield running


def started(hub: HuggingFace, folder: Path, given: dict[str, Any], token: str) -> str:
    """What the command line printed: the job's id."""
    (folder / "input.json").write_text(json.dumps(given), encoding="utf-8")
    (folder / "token").write_text(token, encoding="utf-8")
    command = [str(TRAINER_PYTHON), "-m", "trainer.entry.hf_job", "--input", str(folder / "input.json")]
    command += ["--token-file", str(folder / "token"), "--image", "registry.example.org/tunewright-trainer:1"]
    command += ["--namespace", "someone", "--timeout-s", "7200", "--python", str(TRAINER_PYTHON)]
    env = {**environment(folder), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_job_runs_its_command_and_reports_to_the_gateway(
    hub: HuggingFace, tmp_path: Path, folder_of_pictures: Path, lora_of_the_command_line: str
) -> None:
    receiver = Receiver()
    spec = {
        "job_id": JOB_ID,
        "attempt_id": "attempt-1",
        "attempt_number": 1,
        "gateway_url": receiver.url,
        "config": full_config(),
        "dataloader": full_dataloader(folder_of_pictures),
        "output_prefix": JOB_ID,
    }
    try:
        assert started(hub, tmp_path, {"run_spec": spec}, receiver.token) == "job1"
        (job,) = hub.jobs
        assert job.created["timeoutSeconds"] == 7200
        assert job.created["environment"] == {"TUNEWRIGHT_MAX_RUN_S": "6300"}
        assert job.created["labels"]["tunewright-attempt"] == "attempt-1"
        assert receiver.token not in json.dumps({**job.created, "secrets": None})
        job.created["environment"].update(environment(tmp_path / "work"))
        code = hub.execute(job, tmp_path / "container")
    finally:
        receiver.stop()
    assert code == ExitCode.DONE, job.log
    assert receiver.received.types[-1] == "done"
    delivered = receiver.received.uploads[f"/api/cloud/storage/outputs/{JOB_ID}/{LORA}"]
    assert sha256(delivered) == lora_of_the_command_line
    assert receiver.token not in job.log
    assert_nowhere([receiver.token, TOKEN], tmp_path / "work", tmp_path / "container")


@pytest.mark.slow
async def test_what_the_bridge_creates_runs_the_trainer_and_ends_with_its_exit_code(
    hub: HuggingFace, tmp_path: Path, folder_of_pictures: Path, lora_of_the_command_line: str
) -> None:
    receiver = Receiver()
    tag = Tag(attempt_id=new_id(), epoch=1)
    spec = RunSpec(
        job_id=JOB_ID,
        attempt_id=str(tag.attempt_id),
        attempt_number=1,
        gateway_url=receiver.url,
        config=full_config(),
        dataloader=full_dataloader(folder_of_pictures),
        output_prefix=JOB_ID,
    )
    settings = HuggingFaceSettings(
        api_url=hub.url, image="registry.example.org/tunewright-trainer:1", python=str(TRAINER_PYTHON)
    )
    provider = a_provider(hub, settings=settings)
    try:
        ref = await provider.submit(StartOrder(tag=tag, spec=spec, token=receiver.token))
        job = hub.job(ref)
        job.created["environment"].update(environment(tmp_path / "work"))
        code = hub.execute(job, tmp_path / "container")
        view = await provider.fetch(ref)
    finally:
        receiver.stop()
        await provider.close()
    assert code == ExitCode.DONE, job.log
    assert view is not None
    assert (view.word, view.exit_code) == ("COMPLETED", 0)
    assert receiver.received.types[-1] == "done"
    delivered = receiver.received.uploads[f"/api/cloud/storage/outputs/{JOB_ID}/{LORA}"]
    assert sha256(delivered) == lora_of_the_command_line
    assert receiver.token not in job.log
