# pyright: basic
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attempts import Attempt, AttemptStarter, state_of
from receiver import Receiver
from safetensors.torch import load_file

from shared.contracts.run import ExitCode, FileRef, ResumePoint
from trainer.files import sha256_of
from trainer.train import checkpoint as checkpoint_module
from trainer.train.trainee import Trainee, Update

TWELVE = {"max_train_steps": 12, "checkpointing_steps": 4, "use_ema": True, "gradient_accumulation_steps": 2}


def assert_same_training(one: Attempt, other: Attempt, step: int) -> None:
    """Losses, weights, averages and Adam moments are equal bit for bit."""
    assert one.losses() == other.losses()
    for name in ("pytorch_lora_weights.safetensors", "ema.safetensors"):
        mine, theirs = load_file(one.checkpoint(step) / name), load_file(other.checkpoint(step) / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    moments, others = (
        torch.load(each.checkpoint(step) / "optimizer.pt", weights_only=True)["optimizer"]["state"]
        for each in (one, other)
    )
    for index, state in moments.items():
        assert all(torch.equal(state[key], others[index][key]) for key in ("exp_avg", "exp_avg_sq", "step"))


@pytest.fixture
def straight(start: AttemptStarter) -> Attempt:
    attempt = start("straight", **TWELVE)
    assert attempt.run() == ExitCode.DONE
    return attempt


def held_before(step: int, gate: Path) -> Callable[[], None]:
    """The child waits before this step until `gate` is there: a signal lands before the end on the busiest machine."""

    def prepare() -> None:
        quick, steps = Trainee.update, itertools.count(1)

        def held(self: Trainee) -> Update:
            number = next(steps)
            while number >= step and not gate.exists():
                signal.sigtimedwait([], 0.005)
            return quick(self)

        Trainee.update = held

    return prepare


def slow_steps() -> None:
    """Give signals time to land between two steps, in the child only."""
    quick = Trainee.update

    def slow(self: Trainee) -> Update:
        signal.sigtimedwait([], 0.02)
        return quick(self)

    Trainee.update = slow


def test_sigterm_finishes_the_step_saves_and_resumes_bit_for_bit(
    start: AttemptStarter, straight: Attempt, tmp_path: Path
) -> None:
    gate = tmp_path / "go on"
    stopped = start("stopped", **TWELVE).fork(held_before(8, gate))
    stopped.wait_for_step(6)
    stopped.signal(signal.SIGTERM)
    gate.touch()
    assert stopped.wait() == ExitCode.PREEMPTED
    assert stopped.lines()[-1].type == "failed"
    assert stopped.lines()[-1].data["kind"] == "preempted"
    saved = max(int(path.name.split("-")[1]) for path in (stopped.work_dir / "checkpoints").iterdir())
    assert saved == max(stopped.losses())
    assert 6 <= saved < 12
    assert stopped.run() == ExitCode.DONE
    assert_same_training(straight, stopped, 12)


def test_sigkill_in_the_middle_of_a_save_uses_no_partial_folder(start: AttemptStarter, straight: Attempt) -> None:
    def die_while_saving() -> None:
        def kill_self(path: Path) -> None:
            if ".tmp-8-" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint_module.fsync_path = kill_self

    killed = start("killed", **TWELVE).fork(die_while_saving)
    assert killed.wait() == -signal.SIGKILL
    folders = sorted(path.name for path in (killed.work_dir / "checkpoints").iterdir())
    assert folders[-1] == "checkpoint-4"
    assert folders[0].startswith(".tmp-8-")
    before = [line.seq for line in killed.lines()]
    assert killed.run() == ExitCode.DONE
    assert_same_training(straight, killed, 12)
    seqs = [line.seq for line in killed.lines()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) > len(before)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(straight: Attempt) -> None:
    reference = {key: value.clone() for key, value in load_file(straight.lora).items()}
    damaged = straight.checkpoint(12) / "optimizer.pt"
    os.truncate(damaged, damaged.stat().st_size // 2)
    (straight.work_dir / "events.jsonl").rename(straight.work_dir / "first-run.jsonl")
    assert straight.run() == ExitCode.DONE
    assert [line["code"] for line in straight.data("warning")] == ["damaged_checkpoint"]
    assert min(straight.losses()) == 9
    again = load_file(straight.lora)
    assert all(torch.equal(again[key], reference[key]) for key in reference)


def test_two_datasets_with_repeats_resume_at_the_same_picture(
    start: AttemptStarter, digits: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(digits.iterdir())[:8]:
        (other / path.name).write_bytes(path.read_bytes())
    dataloader = [
        {"id": "one", "type": "local", "instance_data_dir": str(digits), "caption_strategy": "textfile"},
        {"id": "two", "type": "local", "instance_data_dir": str(other), "caption_strategy": "filename", "repeats": 2},
    ]
    settings = {"max_train_steps": 10, "checkpointing_steps": 5, "dataloader": dataloader}
    whole = start("whole", **settings)
    assert whole.run() == ExitCode.DONE
    halves = start("halves", **settings).fork(held_before(9, tmp_path / "never"))
    halves.wait_for_step(7)
    halves.signal(signal.SIGKILL)
    assert halves.wait() == -signal.SIGKILL
    assert halves.run() == ExitCode.DONE
    assert state_of(whole.checkpoint(10)) == state_of(halves.checkpoint(10))
    assert whole.losses() == halves.losses()


def test_resume_on_another_machine_downloads_the_checkpoint(
    start: AttemptStarter, straight: Attempt, receiver: Receiver
) -> None:
    folder = straight.checkpoint(8)
    files = []
    for path in sorted(folder.iterdir()):
        url = f"/files/{path.name}"
        receiver.files[url] = path.read_bytes()
        files.append(FileRef(name=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size, url=url))
    elsewhere = start("elsewhere", gateway=receiver, resume=ResumePoint(step=8, files=files), **TWELVE)
    assert elsewhere.run() == ExitCode.DONE
    assert sorted(elsewhere.losses()) == [9, 10, 11, 12]
    mine, theirs = load_file(straight.lora), load_file(elsewhere.lora)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_another_rank_is_refused(start: AttemptStarter) -> None:
    attempt = start("first", max_train_steps=2)
    assert attempt.run() == ExitCode.DONE
    (attempt.work_dir / "events.jsonl").unlink()
    changed = start("first", max_train_steps=2, lora_rank=8)
    assert changed.run() == ExitCode.BAD_CONFIG
    assert "rank" in changed.data("failed")[0]["message"]


def test_checkpoints_beyond_the_limit_are_deleted(start: AttemptStarter) -> None:
    attempt = start("limited", max_train_steps=8, checkpoints_total_limit=2)
    assert attempt.run() == ExitCode.DONE
    assert sorted(path.name for path in (attempt.work_dir / "checkpoints").iterdir()) == [
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_batches_made_ahead_change_nothing_not_even_after_a_resume(start: AttemptStarter, straight: Attempt) -> None:
    ahead = start("ahead", **TWELVE, dataloader_prefetch=True, dataloader_prefetch_qlen=3)
    assert ahead.run() == ExitCode.DONE
    assert_same_training(straight, ahead, 12)
    newest = ahead.checkpoint(12)
    newest.rename(newest.with_name("aside"))
    (ahead.work_dir / "events.jsonl").unlink()
    assert ahead.run() == ExitCode.DONE
    resumed = {step: loss for step, loss in straight.losses().items() if step > 8}
    assert ahead.losses() == resumed
