"""RunPod pods and Lambda machines from order to closed bill: the simulators really run what they are sent."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider, StartOrder, Tag
from services.provider_bridge.outbound.vendors.lambda_cloud import LambdaCloud, LambdaSettings
from services.provider_bridge.outbound.vendors.runpod_pods import RunPodPods, RunPodSettings
from shared.clock import utc_now
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.settings import Secret
from tests.simulators import lambda_cloud, runpod_pods
from tests.support.sources import ROOT
from tests.support.waiting import eventually
from tests.trainer.receiver import Receiver
from tests.vendors.conftest import JOB_ID, LORA, assert_nowhere, full_config, full_dataloader, sha256
from tests.vendors.programs import TRAINER_PYTHON, environment
from tests.vendors.test_kaggle import a_repository

pytestmark = pytest.mark.slow
LONG = {"num_train_epochs": 0, "max_train_steps": 100_000}


@pytest.fixture
def receiver() -> Any:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[tuple[runpod_pods.RunPodPods, Provider]]:
    with runpod_pods.RunPodPods() as account:
        account.per_minute = None
        account.command = [str(TRAINER_PYTHON), "-m", "trainer.entry.container"]
        account.folder = tmp_path / "pods"
        account.machine_env = environment(tmp_path / "work")
        settings = RunPodSettings(api_url=account.url, image="someone/tunewright:1", calls_per_minute=600)
        provider = RunPodPods(materials(settings, runpod_pods.KEY))
        yield account, provider
        await provider.close()


def materials(settings: Any, key: str) -> Materials:
    return Materials(
        credentials={"api_key": Secret(key)},
        settings=settings,
        network=NetworkSettings(),
        installation="0a1b2c3d",
        clock=utc_now,
    )


def an_order(receiver: Receiver, pictures: Path, **config: Any) -> StartOrder:
    tag = Tag(attempt_id=new_id(), epoch=1)
    spec = RunSpec(
        job_id=JOB_ID,
        attempt_id=str(tag.attempt_id),
        attempt_number=1,
        gateway_url=receiver.url,
        config={**full_config(), **config},
        dataloader=full_dataloader(pictures),
        output_prefix=JOB_ID,
    )
    return StartOrder(tag=tag, spec=spec, token=receiver.token, max_run_s=900)


def tools_of_a_machine(folder: Path) -> dict[str, str]:
    """The environment of a machine's first boot, with the trainer's packages there instead of fetched by pip."""
    tools = folder / "tools"
    tools.mkdir()
    python = tools / "python3"
    python.write_text(
        f'#!/usr/bin/env bash\ntest "${{1##*/}}" = setup_env.py && ln -s "{ROOT}/.venv-trainer" "${{1%/trainer/*}}/"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    env = environment(folder / "elsewhere")
    return {**env, "PATH": f"{tools}:{env['PATH']}", "PYTHONPATH": ""}


async def test_a_pod_trains_reports_ends_itself_and_its_bill_is_closed(
    pods: tuple[runpod_pods.RunPodPods, Provider],
    receiver: Receiver,
    folder_of_pictures: Path,
    lora_of_the_command_line: str,
    tmp_path: Path,
) -> None:
    account, provider = pods
    ref = await provider.submit(an_order(receiver, folder_of_pictures))
    log: list[str] = []
    cursor: str | None = None

    async def gone() -> bool:
        nonlocal cursor
        page = await provider.logs(ref, cursor)
        cursor = page.cursor
        log.extend(page.lines)
        return await provider.confirm_gone(ref)

    await eventually(gone, 240)
    assert receiver.received.types[-1] == "done", account.pods[ref].log
    delivered = receiver.received.uploads[f"/api/cloud/storage/outputs/{JOB_ID}/{LORA}"]
    assert sha256(delivered) == lora_of_the_command_line
    assert await provider.list_ours() == []
    [line] = account.bill.lines
    assert line.ended is not None
    ending = [call for call in account.calls if call.method == "DELETE"]
    assert [call.headers["authorization"] for call in ending] == [f"Bearer {account.pods[ref].key}"], "by itself"
    assert any('"metrics"' in each for each in log)
    assert log == [line for _, line in account.pods[ref].log][: len(log)], "every line once, in its order"
    assert_nowhere([receiver.token, runpod_pods.KEY], tmp_path / "work", tmp_path / "pods")
    assert receiver.token not in "\n".join(log)


async def test_a_pod_that_is_cancelled_saves_and_its_bill_is_closed(
    pods: tuple[runpod_pods.RunPodPods, Provider], receiver: Receiver, folder_of_pictures: Path
) -> None:
    account, provider = pods
    order = an_order(receiver, folder_of_pictures, **LONG)
    ref = await provider.submit(order)

    async def trains() -> bool:
        return "metrics" in receiver.received.types

    await eventually(trains, 120)

    async def gone() -> bool:
        await provider.cancel(order.tag, ref, 30)
        return await provider.confirm_gone(ref)

    await eventually(gone, 60)
    assert receiver.received.of_type("failed")[0]["kind"] == "preempted"
    assert receiver.received.of_type("checkpoint"), "what it had learnt came home"
    assert account.pods[ref].restarts <= 1
    assert account.bill.open() == []


async def test_a_machine_boots_fetches_the_code_trains_and_costs_until_it_is_terminated(
    receiver: Receiver, folder_of_pictures: Path, lora_of_the_command_line: str, tmp_path: Path
) -> None:
    with lambda_cloud.LambdaCloud() as account:
        account.call_every_s = account.launch_every_s = None
        account.folder = tmp_path / "machines"
        account.machine_env = tools_of_a_machine(tmp_path)
        settings = LambdaSettings(
            api_url=account.url,
            git_url=str(a_repository(tmp_path / "repository")),
            git_revision="release",
            calls_per_s=10,
        )
        provider = LambdaCloud(materials(settings, lambda_cloud.KEY))
        order = an_order(receiver, folder_of_pictures)
        ref = await provider.submit(order)

        async def ended() -> bool:
            boot = account.machines[ref].boot
            return boot is not None and boot.poll() is not None

        await eventually(ended, 240)
        machine = account.machines[ref]
        log = (account.folder / ref / "opt" / "boot.log").read_text(encoding="utf-8")
        assert machine.boot is not None
        assert machine.boot.returncode == 0, log
        assert receiver.received.types[-1] == "done"
        delivered = receiver.received.uploads[f"/api/cloud/storage/outputs/{JOB_ID}/{LORA}"]
        assert sha256(delivered) == lora_of_the_command_line
        assert not await provider.confirm_gone(ref), "it goes on costing money"
        await provider.cancel(order.tag, ref, 30)

        async def gone() -> bool:
            return await provider.confirm_gone(ref)

        await eventually(gone, 30)
        assert account.bill.open() == []
        assert await provider.list_ours() == []
        await provider.close()
        (account.folder / ref / "part-001").unlink()  # the simulator's copy; cloud-init's goes by itself
        assert_nowhere([receiver.token], account.folder)
