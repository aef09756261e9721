"""The Kaggle kernel: written, pushed by the vendor's client, and run as the script that was pushed."""

import json
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from services.provider_bridge.outbound.ports import StartOrder, Tag
from services.provider_bridge.outbound.vendors.kaggle import KaggleSettings
from shared.contracts.run import ExitCode, RunSpec, TrainerCommand
from shared.ids import new_id
from tests.contract.providers.kaggle import SOURCE, a_provider
from tests.simulators.kaggle import ENVIRONMENT, Kaggle
from tests.trainer.receiver import Receiver
from tests.vendors.conftest import JOB_ID, LORA, assert_nowhere, full_config, full_dataloader, sha256
from tests.vendors.programs import ROOT, TRAINER_PYTHON, environment, vendors_python

SLUG = "someone/tunewright-test"


@pytest.fixture
def kaggle() -> Generator[Kaggle]:
    with Kaggle() as account:
        yield account


def written(folder: Path, given: dict[str, Any], token: str = "", **options: str) -> Path:
    """The kernel's folder as the command line writes it."""
    (folder / "input.json").write_text(json.dumps(given), encoding="utf-8")
    command = [str(TRAINER_PYTHON), "-m", "trainer.entry.kaggle", str(folder / "kernel"), "--owner", "someone"]
    command += ["--title", "Tunewright test", "--input", str(folder / "input.json"), "--source-folder", str(ROOT)]
    command += ["--packages", str(TRAINER_PYTHON), "--dataset", "someone/tunewright-source"]
    if token:
        (folder / "token").write_text(token, encoding="utf-8")
        command += ["--token-file", str(folder / "token")]
    command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), check=True, capture_output=True, text=True)
    assert done.stdout.startswith("kaggle kernels push -p ")
    return folder / "kernel"


def client(kaggle: Kaggle, folder: Path, code: str) -> Any:
    """What the vendor's client printed last, from JSON."""
    env = {**environment(folder), **ENVIRONMENT, "HOME": str(folder)}
    command = [vendors_python(), "-c", kaggle.client_program(code)]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def pushed(kaggle: Kaggle, folder: Path, kernel: Path) -> dict[str, Any]:
    code = f"r = api.kernels_push({str(kernel)!r}); print(json.dumps([r.version_number, r.error, r.url]))"
    version, error, _url = client(kaggle, folder, code)
    assert (version, error) == (1, ""), error
    return kaggle.kernels[SLUG][-1].pushed


def session(folder: Path) -> dict[str, str]:
    """What a session has: nothing of ours but the machine's."""
    mine = {"PATH", "HOME", "LANG", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TUNEWRIGHT_DEVICE"}
    return {name: value for name, value in environment(folder).items() if name in mine}


def test_a_pushed_kernel_leaves_the_command_lines_lora_as_its_output(
    kaggle: Kaggle, tmp_path: Path, job_input: dict[str, Any], lora_of_the_command_line: str
) -> None:
    kernel = written(tmp_path, job_input, work_dir=str(tmp_path / "working"))
    sent = pushed(kaggle, tmp_path, kernel)
    assert (sent["slug"], sent["newTitle"], sent["kernelType"]) == (SLUG, "Tunewright test", "script")
    assert sent["isPrivate"] is True
    assert sent["enableInternet"] is True
    assert sent["machineShape"] == "NvidiaTeslaT4"
    assert sent["datasetDataSources"] == ["someone/tunewright-source"]
    version = kaggle.execute(SLUG, str(TRAINER_PYTHON), session(tmp_path), tmp_path / "session")
    assert version.exit_code == ExitCode.DONE, version.log
    assert sha256((tmp_path / "working" / JOB_ID / "output" / LORA).read_bytes()) == lora_of_the_command_line
    code = f"print(json.dumps(str(api.kernels_status({SLUG!r}).status)))"
    assert client(kaggle, tmp_path, code).endswith("COMPLETE")


def test_the_gateway_stops_a_kernel_which_saves_and_ends_with_75(
    kaggle: Kaggle, tmp_path: Path, folder_of_pictures: Path
) -> None:
    receiver = Receiver()
    config = {**full_config(), "num_train_epochs": 0, "max_train_steps": 100_000}
    entry = {"id": "dataset", "type": "local", "caption_strategy": "textfile"}
    spec = {
        "job_id": "stopped",
        "attempt_id": "attempt-1",
        "attempt_number": 1,
        "gateway_url": receiver.url,
        "config": config,
        "dataloader": [{**entry, "instance_data_dir": str(folder_of_pictures)}],
        "output_prefix": "stopped",
    }

    def stop_after_a_step(lines: list[Any]) -> int:
        if any(line.type == "metrics" for line in lines):
            receiver.commands = [TrainerCommand(id="1", name="stop")]
        return 200

    receiver.answer_reports = stop_after_a_step
    try:
        kernel = written(tmp_path, {"run_spec": spec}, token=receiver.token)
        pushed(kaggle, tmp_path, kernel)
        version = kaggle.execute(SLUG, str(TRAINER_PYTHON), session(tmp_path), tmp_path / "session")
    finally:
        receiver.stop()
    assert version.exit_code == ExitCode.PREEMPTED, version.log
    assert receiver.received.types[-1] == "failed"
    assert receiver.received.of_type("failed")[0]["kind"] == "preempted"
    assert receiver.received.of_type("checkpoint"), "the checkpoint was uploaded before the end"
    assert receiver.token not in version.log
    assert_nowhere([receiver.token], tmp_path / "session")


def test_a_full_account_refuses_with_kaggles_own_words(
    kaggle: Kaggle, tmp_path: Path, job_input: dict[str, Any]
) -> None:
    kaggle.refusal_text = "Maximum batch GPU session count of 2 reached."
    kernel = written(tmp_path, job_input)
    code = f"print(json.dumps(api.kernels_push({str(kernel)!r}).error))"
    assert client(kaggle, tmp_path, code) == kaggle.refusal_text


def a_repository(folder: Path) -> Path:
    """What a kernel needs of our source, in a git repository of its own."""
    for package in ("trainer", "shared"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(folder), "-c", "user.name=a test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet", "--initial-branch", "release"], check=True)
    subprocess.run([*git, "add", "--all", "--force"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "As it is"], check=True)
    return folder


@pytest.mark.slow
async def test_what_the_bridge_pushes_is_known_to_kaggles_client_and_ends_with_the_trainers_exit_code(
    kaggle: Kaggle, tmp_path: Path, folder_of_pictures: Path, lora_of_the_command_line: str
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
    settings = KaggleSettings(
        api_url=kaggle.url, source_git=SOURCE, source_revision="release", packages=str(TRAINER_PYTHON)
    )
    provider = a_provider(kaggle, settings=settings)
    repository = a_repository(tmp_path / "repository")
    replaced = {"GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf", "GIT_CONFIG_VALUE_0": SOURCE}
    try:
        ref = await provider.submit(StartOrder(tag=tag, spec=spec, token=receiver.token))
        listed = client(kaggle, tmp_path, "print(json.dumps([k.ref for k in api.kernels_list(mine=True)]))")
        assert listed == [ref]
        env = {**session(tmp_path), **replaced, "GIT_CONFIG_COUNT": "1"}
        version = kaggle.execute(ref, str(TRAINER_PYTHON), env, tmp_path / "session")
        view = await provider.fetch(ref)
        page = await provider.logs(ref, None)
    finally:
        receiver.stop()
        await provider.close()
    assert version.exit_code == ExitCode.DONE, version.log
    assert view is not None
    assert (view.word, view.exit_code) == ("COMPLETE", 0)
    assert "\n".join(page.lines) == version.log.rstrip("\n")
    assert client(kaggle, tmp_path, f"print(json.dumps(str(api.kernels_status({ref!r}).status)))").endswith("COMPLETE")
    assert receiver.received.types[-1] == "done"
    delivered = receiver.received.uploads[f"/api/cloud/storage/outputs/{JOB_ID}/{LORA}"]
    assert sha256(delivered) == lora_of_the_command_line
    assert_nowhere([receiver.token], tmp_path / "session")
