"""How the local provider makes sure of one trainer process per attempt, and of what is left of it."""

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.ports import RunView, StartOrder, StartRefused, Tag
from shared.contracts.trainer_environment import trainer_environment
from shared.ids import new_id
from shared.runs.folder import AttemptFolder, claim, read_json, write_atomically
from shared.runs.machine import TRAINER_DRAIN_S
from shared.runs.runner import ALREADY_CLAIMED, CLAIMED, STALE_EPOCH
from tests.integration.provider_bridge import stand_in_trainer as stand_in

ROOT = Path(__file__).resolve().parents[3]


def a_provider(folder: Path, *, log_limit_bytes: int = 1024) -> LocalProvider:
    return LocalProvider(
        LocalOptions(
            state_dir=folder / "state",
            trainer_python=stand_in.install(folder),
            trainer_dir=folder,
            environ={"PATH": "/usr/bin:/bin"},
            log_limit_bytes=log_limit_bytes,
        )
    )


def folder_of(folder: Path, attempt: UUID) -> AttemptFolder:
    return AttemptFolder(folder / "state" / "attempts" / str(attempt))


async def run(folder: Path, attempt: UUID, **plan: Any) -> LocalProvider:
    provider = a_provider(folder)
    await provider.submit(
        StartOrder(tag=Tag(attempt_id=attempt, epoch=1), spec=stand_in.a_spec(attempt, **plan), token="token")
    )
    return provider


async def until_exited(provider: LocalProvider, attempt: UUID) -> RunView:
    async def exited() -> RunView | None:
        view = await provider.fetch(str(attempt))
        return view if view and view.word == "exited" and await provider.confirm_gone(str(attempt)) else None

    return await stand_in.eventually("the run has exited", exited)


async def until_started(folder: Path, attempt: UUID) -> dict[str, Any]:
    async def started() -> list[dict[str, Any]]:
        return stand_in.starts(folder / "state", attempt)

    return (await stand_in.eventually("the trainer runs", started))[0]


async def launch(folder: AttemptFolder, epoch: int) -> int:
    module = "shared.runs.runner"
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-m", module, str(folder.root), str(epoch), cwd=ROOT
    )
    return await launcher.wait()


def prepared(folder: Path, attempt: UUID, *epochs: int) -> AttemptFolder:
    """An attempt's folder as submit leaves it for the runner, without the pre-check that finds an earlier claim."""
    a_provider(folder)
    made = folder_of(folder, attempt)
    made.work.mkdir(parents=True)
    for epoch in epochs:
        inputs = made.start_folder(epoch)
        inputs.mkdir()
        (inputs / "token").write_text(f"token of {epoch}")
        (inputs / "spec.json").write_text(json.dumps({"config": {}}))
        files = ["--spec", inputs / "spec.json", "--token-file", inputs / "token", "--work-dir", made.work]
        argv = [str(part) for part in [folder / "stand-in-trainer", "-m", "trainer", "run", *files]]
        order = {"argv": argv, "cwd": str(folder), "log_limit_bytes": 1024}
        (inputs / "launch.json").write_text(json.dumps(order))
    return made


async def test_of_many_runners_at_once_one_claims_and_one_trainer_is_started(tmp_path: Path) -> None:
    attempt = new_id()
    folder = prepared(tmp_path, attempt, 1)
    answers = await asyncio.gather(*(launch(folder, 1) for _ in range(6)))
    assert sorted(answers) == [CLAIMED] + [ALREADY_CLAIMED] * 5
    await until_started(tmp_path, attempt)
    stand_in.finish(tmp_path / "state", attempt)
    await until_exited(a_provider(tmp_path), attempt)
    assert await launch(folder, 1) == ALREADY_CLAIMED
    [start] = stand_in.starts(tmp_path / "state", attempt)
    [line] = folder.starts.read_text().splitlines()
    assert json.loads(line)["trainer_pid"] == start["pid"]


async def test_a_finished_trainer_is_told_to_wait_for_days_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    attempt = new_id()
    provider = await run(tmp_path, attempt)
    argv: list[str] = (await until_started(tmp_path, attempt))["argv"]
    assert float(argv[argv.index("--drain-s") + 1]) == TRAINER_DRAIN_S >= 3 * 24 * 3600
    stand_in.finish(tmp_path / "state", attempt)
    await until_exited(provider, attempt)


async def test_a_run_that_is_gone_ended_at_its_last_sign_of_life(tmp_path: Path) -> None:
    attempt = new_id()
    folder = prepared(tmp_path, attempt, 1)
    assert claim(folder.started, "{}")
    folder.log.touch()
    folder.spool.touch()
    for path, moment in ((folder.started, 1_000), (folder.spool, 5_000), (folder.log, 3_000)):
        os.utime(path, (moment, moment))
    view = await a_provider(tmp_path).fetch(str(attempt))
    assert view is not None
    assert (view.word, view.ended_at) == ("gone", datetime.fromtimestamp(5_000, UTC))


async def test_a_runner_whose_epoch_was_shut_out_claims_nothing(tmp_path: Path) -> None:
    attempt = new_id()
    folder = prepared(tmp_path, attempt, 1, 2)
    assert await a_provider(tmp_path).find(Tag(attempt_id=attempt, epoch=2)) is None
    assert await launch(folder, 1) == STALE_EPOCH
    assert not folder.started.exists()
    assert await launch(folder, 2) == CLAIMED
    assert (await until_started(tmp_path, attempt))["token"] == "token of 2"


async def test_a_wish_to_end_that_is_older_than_the_start_prevents_the_trainer(tmp_path: Path) -> None:
    attempt = new_id()
    folder = prepared(tmp_path, attempt, 1)
    provider = a_provider(tmp_path)
    await provider.cancel(Tag(attempt_id=attempt, epoch=1), str(attempt), 1)
    assert await launch(folder, 1) == CLAIMED
    await until_exited(provider, attempt)
    assert stand_in.starts(tmp_path / "state", attempt) == []


async def test_a_claim_without_an_end_and_without_a_living_runner_is_gone_and_never_started_again(
    tmp_path: Path,
) -> None:
    attempt = new_id()
    folder = prepared(tmp_path, attempt, 1)
    assert claim(folder.started, "")  # as a power cut leaves it: half written
    provider = a_provider(tmp_path)
    view = await provider.find(Tag(attempt_id=attempt, epoch=2))
    assert view is not None
    assert view.word == "gone"
    assert await launch(folder, 2) == ALREADY_CLAIMED
    assert stand_in.starts(tmp_path / "state", attempt) == []


async def test_what_the_trainer_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    attempt = new_id()
    provider = await run(tmp_path, attempt, leave_child=True, code=0)
    view = await until_exited(provider, attempt)
    assert view.exit_code == 0
    assert await provider.confirm_gone(str(attempt))


async def test_the_trainers_output_stays_within_its_bound_and_keeps_the_end(tmp_path: Path) -> None:
    attempt = new_id()
    provider = await run(tmp_path, attempt, print_bytes=20_000, say="the last line", code=1)
    view = await until_exited(provider, attempt)
    folder = folder_of(tmp_path, attempt)
    kept = [folder.log, folder.log.with_name("trainer.log.1")]
    assert sum(path.stat().st_size for path in kept) <= 1024
    assert folder.log.read_text().endswith("the last line\n")
    assert view.last_words.endswith("the last line")


async def test_the_token_is_removed_when_the_trainer_has_ended(tmp_path: Path) -> None:
    attempt = new_id()
    provider = await run(tmp_path, attempt, code=0)
    await until_exited(provider, attempt)
    assert not (folder_of(tmp_path, attempt).start_folder(1) / "token").exists()


async def test_a_runner_that_does_not_act_on_a_cancel_is_itself_ended(tmp_path: Path) -> None:
    attempt = new_id()
    provider = await run(tmp_path, attempt)
    start = await until_started(tmp_path, attempt)
    folder = folder_of(tmp_path, attempt)
    runner = (read_json(folder.started) or {})["runner_pid"]
    os.kill(runner, signal.SIGSTOP)
    tag = Tag(attempt_id=attempt, epoch=1)
    write_atomically(folder.cancel, json.dumps({"grace_s": 1, "asked_at": 0}))
    await provider.cancel(tag, str(attempt), 1)

    async def gone() -> bool:
        return await provider.confirm_gone(str(attempt))

    await stand_in.eventually("the run is gone", gone)
    assert not stand_in.is_running(start["pid"])


async def test_a_trainer_that_cannot_be_executed_is_an_exit_with_its_reason(tmp_path: Path) -> None:
    attempt = new_id()
    (tmp_path / "stand-in-trainer").unlink(missing_ok=True)
    provider = a_provider(tmp_path)
    (tmp_path / "stand-in-trainer").write_text("#!/nowhere/at/all\n")
    await provider.submit(
        StartOrder(tag=Tag(attempt_id=attempt, epoch=1), spec=stand_in.a_spec(attempt), token="token")
    )
    view = await until_exited(provider, attempt)
    assert view.exit_code == 127
    assert "could not be started" in view.last_words


async def test_a_start_without_the_trainers_code_is_refused(tmp_path: Path) -> None:
    options = LocalOptions(
        state_dir=tmp_path, trainer_python=stand_in.install(tmp_path), trainer_dir=tmp_path / "none", environ={}
    )
    with pytest.raises(StartRefused):
        await LocalProvider(options).submit(
            StartOrder(tag=Tag(attempt_id=new_id(), epoch=1), spec=stand_in.a_spec(new_id()), token="t")
        )


def test_a_trainers_environment_holds_no_secret_of_the_control_plane() -> None:
    given = {
        "PATH": "/bin",
        "HF_TOKEN": "hub",
        "CUDA_VISIBLE_DEVICES": "0",
        "DATABASE_URL": "x",
        "NATS_PASSWORD": "x",
        "TRAINER_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    passed = trainer_environment(given)
    assert passed == {"PATH": "/bin", "HF_TOKEN": "hub", "CUDA_VISIBLE_DEVICES": "0", "PYTHONUNBUFFERED": "1"}


def test_a_credential_set_for_deliveries_reaches_the_trainer_under_its_own_name() -> None:
    given = {"TRAINER_DELIVERY_AWS_ACCESS_KEY_ID": "results", "AWS_ACCESS_KEY_ID": "the control plane's"}
    assert trainer_environment(given) == {"AWS_ACCESS_KEY_ID": "results", "PYTHONUNBUFFERED": "1"}
