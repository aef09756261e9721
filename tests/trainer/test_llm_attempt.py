# pyright: basic
"""Attempts of language models: exact resume, equal runs, reports, and what is refused."""

import hashlib
import io
import itertools
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import Attempt, state_of
from llm_runs import LlmAttempts, evaluations, newest_checkpoint, step_losses
from receiver import Receiver
from safetensors.torch import load_file
from tiny.dialogues import write_jsonl

from shared.contracts.run import DatasetRef, ExitCode
from trainer.train.trainee import Trainee, Update

PACKED = {"packing": True, "gradient_accumulation_steps": 2, "batch_size": 2, "max_steps": 10, "lora_dropout": 0.1}


def killed_after(step: int) -> Callable[[], None]:
    """The child kills itself right after an update, before anything is reported or saved."""

    def prepare() -> None:
        quick, steps = Trainee.update, itertools.count(1)

        def fatal(self: Trainee) -> Update:
            update = quick(self)
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return update

        Trainee.update = fatal

    return prepare


def tensors_of(attempt: Attempt) -> dict[str, torch.Tensor]:
    return load_file(attempt.work_dir / "output" / "adapter_model.safetensors")


@pytest.mark.parametrize("step", [3, 7])
def test_a_kill_at_any_step_changes_no_bit_of_what_follows(start_llm: LlmAttempts, step: int) -> None:
    straight = start_llm("straight", **PACKED)
    assert straight.run() == ExitCode.DONE
    killed = start_llm("killed", **PACKED).fork(killed_after(step))
    assert killed.wait() == -signal.SIGKILL
    assert killed.run() == ExitCode.DONE
    assert step_losses(killed) == step_losses(straight)
    mine, theirs = tensors_of(straight), tensors_of(killed)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert state_of(newest_checkpoint(straight)) == state_of(newest_checkpoint(killed))


def test_two_runs_with_one_seed_leave_identical_files_and_another_seed_does_not(start_llm: LlmAttempts) -> None:
    one, two, other = start_llm("one"), start_llm("two"), start_llm("other", seed=12)
    assert one.run() == two.run() == other.run() == ExitCode.DONE
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert (one.work_dir / "output" / name).read_bytes() == (two.work_dir / "output" / name).read_bytes()
    assert step_losses(one) == step_losses(two)
    assert step_losses(one) != step_losses(other)


def test_looking_while_training_changes_nothing(start_llm: LlmAttempts) -> None:
    dataset = {"path": None, "eval_split": 0.05}
    dataset["path"] = str(start_llm._dataset)  # noqa: SLF001 -- the same rows for both
    quiet = start_llm("quiet", dataset=dataset, lora_dropout=0.1)
    looking = start_llm(
        "looking", dataset=dataset, lora_dropout=0.1, eval_steps=2,
        top={"predictions": {"enabled": True, "sample_count": 2, "max_new_tokens": 4}},
    )  # fmt: skip
    assert quiet.run() == looking.run() == ExitCode.DONE
    assert step_losses(quiet) == step_losses(looking)
    assert sorted(evaluations(looking)) == [0, 2, 4, 6]


def test_accumulated_batches_give_the_update_of_one_large_batch(start_llm: LlmAttempts, tmp_path: Path) -> None:
    rows = [{"text": "word " * length} for length in (3, 9, 20, 40)]
    dataset = str(write_jsonl(tmp_path / "uneven" / "a.jsonl", rows))
    large = start_llm("large", dataset=dataset, batch_size=4, max_steps=1)
    parts = start_llm("parts", dataset=dataset, batch_size=1, gradient_accumulation_steps=4, max_steps=1)
    assert large.run() == parts.run() == ExitCode.DONE
    assert step_losses(large)[1] == pytest.approx(step_losses(parts)[1], rel=1e-5)
    one, other = (attempt.data("metrics")[-1]["grad_norm"] for attempt in (large, parts))
    assert one == pytest.approx(other, rel=1e-4)


def test_epochs_are_counted_in_steps_and_looked_at_once_each(start_llm: LlmAttempts, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} is", "completion": f" {number}"} for number in range(20)]
    dataset = str(write_jsonl(tmp_path / "rows" / "a.jsonl", rows))
    attempt = start_llm(
        "epochs", dataset=dataset, max_steps=0, num_epochs=2, warmup_ratio=0.5, lr_scheduler="constant_with_warmup",
        eval_steps=None, batch_size=6, save_strategy="epoch",
        top={"predictions": {"enabled": True, "sample_count": 5, "sample_frequency": "epoch", "max_new_tokens": 2}},
    )  # fmt: skip
    assert attempt.run() == ExitCode.DONE
    assert sorted(step_losses(attempt)) == [1, 2, 3, 4, 5, 6]  # 18 rows, two are held out
    assert sorted(evaluations(attempt)) == [0, 3, 6]
    assert [line["step"] for line in attempt.data("checkpoint")] == [3, 6]
    rates = [line["lr"] for line in attempt.data("metrics") if "lr" in line]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])


def test_a_dataset_of_the_dataloader_list_comes_from_the_gateway(
    start_llm: LlmAttempts, receiver: Receiver, dialogue_file: Path
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(dialogue_file, arcname="chat.jsonl")
    archive = stream.getvalue()
    receiver.files["/files/chat.tar"] = archive
    ref = DatasetRef(
        id="chats", sha256=hashlib.sha256(archive).hexdigest(), size_bytes=len(archive), url="/files/chat.tar"
    )
    entry = {"id": "chats", "type": "local", "dataset_type": "text", "instance_data_dir": "/only/at/the/users"}
    attempt = start_llm("fetched", gateway=receiver, dataloader=[entry], datasets=[ref], max_steps=2)
    assert attempt.run() == ExitCode.DONE
    names = [file["name"] for file in receiver.received.of_type("done")[0]["artifacts"]]
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "manifest.json"} <= set(names)
    assert receiver.received.of_type("hello")[0]["ignored_keys"] == ["chats.dataset_type", "chats.type"]


def test_truncated_and_empty_rows_are_counted(start_llm: LlmAttempts, tmp_path: Path) -> None:
    long = {"prompt": "word " * 200, "completion": "end"}
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}, long]
    attempt = start_llm("cut", dataset=str(write_jsonl(tmp_path / "rows" / "a.jsonl", rows)), max_steps=1)
    assert attempt.run() == ExitCode.DONE
    warnings = {line["code"]: line["message"] for line in attempt.data("warning")}
    assert "1 rows twice" in warnings["duplicate_rows"]
    assert "1 training rows are cut at 96 tokens" in warnings["rows_truncated"]
    assert "1 training rows have no learned token within 96 tokens: a.jsonl:3" in warnings["rows_left_out"]


def test_rows_without_anything_to_learn_end_the_attempt(start_llm: LlmAttempts, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows" / "a.jsonl", [{"prompt": "word " * 200, "completion": "end"}])
    attempt = start_llm("empty", dataset=str(rows))
    assert attempt.run() == ExitCode.BAD_DATA
    assert "no training row has a learned token within 96 tokens: a.jsonl:1" in attempt.data("failed")[0]["message"]


@pytest.mark.parametrize(
    ("top", "training", "code", "message"),
    [
        ({"quantization": {"load_in_4bit": True}}, {}, ExitCode.BAD_CONFIG, "4bit quantisation needs a CUDA device"),
        ({"model": "/nowhere"}, {}, ExitCode.UNREACHABLE, "no language model lies in /nowhere"),
        ({}, {"target_modules": ["attention"]}, ExitCode.BAD_CONFIG, "the base model has no such layers"),
        ({}, {"lora_rr": 3}, ExitCode.BAD_CONFIG, "training.lora_rr: lora_rr is not a known key"),
        ({}, {"chat_template": "{% if %}"}, ExitCode.BAD_DATA, "the chat template refuses a dialogue of user"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_reason(
    start_llm: LlmAttempts, top: dict[str, Any], training: dict[str, Any], code: int, message: str
) -> None:
    attempt = start_llm("refused", top=top, **training)
    assert attempt.run() == code
    assert message in attempt.data("failed")[0]["message"]


def test_another_dataset_or_rank_does_not_resume(start_llm: LlmAttempts, tmp_path: Path) -> None:
    first = start_llm("changed", max_steps=2)
    assert first.run() == ExitCode.DONE
    (first.work_dir / "events.jsonl").unlink()
    rows = write_jsonl(tmp_path / "rows" / "a.jsonl", [{"text": "other words"}])
    changed = start_llm("changed", dataset=str(rows), lora_r=4)
    assert changed.run() == ExitCode.BAD_CONFIG
    assert "made with another dataset, rank" in changed.data("failed")[0]["message"]
