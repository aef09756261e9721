# pyright: basic
"""Settings of one training, each in a few steps of a tiny base: they have their effect, and resuming is exact."""

import hashlib
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import FIXTURE, Attempt, AttemptStarter, state_of
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors.torch import load_file

from shared.contracts.run import ExitCode
from trainer.families.flux import FAMILY
from trainer.train.quantise import quantise

SHORT: dict[str, Any] = {"max_train_steps": 4, "checkpointing_steps": 2, "lr_scheduler": "constant"}


def again(attempt: Attempt) -> int:
    """Run once more in the same folder, as if its reports had been delivered."""
    (attempt.work_dir / "events.jsonl").unlink()
    return attempt.run()


def same_tensors(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "full", "learning_rate": 0.0001, "use_ema": True, "gradient_accumulation_steps": 2},
        {"use_dora": True, "gradient_accumulation_steps": 2},
        {"optimizer": "lion", "learning_rate": 0.001, "use_ema": True, "ema_warmup_steps": 1},
        {"base_model_precision": "int8-torchao", "gradient_checkpointing": True, "gradient_checkpointing_interval": 2},
        {"optimizer": "adafactor", "offset_noise": False, "peft_lora_target_modules": "to_q,to_k"},
    ],
    ids=["full", "dora", "lion", "int8", "adafactor"],
)
def test_resuming_is_exact_with_every_kind_of_state(start: AttemptStarter, settings: dict[str, Any]) -> None:
    whole = start("whole", **SHORT, **settings)
    assert whole.run() == ExitCode.DONE
    parts = start("parts", **{**SHORT, "max_train_steps": 2}, **settings)
    assert parts.run() == ExitCode.DONE
    rest = start("parts", **SHORT, **settings)
    assert again(rest) == ExitCode.DONE
    assert sorted(rest.losses()) == [3, 4]
    assert {step: whole.losses()[step] for step in (3, 4)} == rest.losses()
    result = "diffusion_pytorch_model.safetensors" if "model_type" in settings else whole.lora.name
    assert same_tensors(whole.lora.with_name(result), rest.lora.with_name(result))


@pytest.mark.parametrize("model_type", ["lora", "full"])
def test_two_runs_with_one_seed_give_the_same_files_and_another_seed_others(
    start: AttemptStarter, model_type: str
) -> None:
    settings = {**SHORT, "max_train_steps": 2, "model_type": model_type}
    one, two, other = start("one", **settings), start("two", **settings), start("other", **settings, seed=12)
    digests = []
    for attempt in (one, two, other):
        assert attempt.run() == ExitCode.DONE
        weights = next(attempt.lora.parent.glob("*.safetensors"))
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_a_run_that_is_killed_after_every_step_ends_like_one_that_was_not(start: AttemptStarter) -> None:
    settings = {**SHORT, "checkpointing_steps": 1, "gradient_accumulation_steps": 2, "use_ema": True}
    whole = start("whole", **settings)
    assert whole.run() == ExitCode.DONE
    killed = start("killed", **settings)
    for step in (1, 2, 3):
        killed.fork()
        killed.wait_for(lambda step=step: (killed.checkpoint(step) / "manifest.json").exists())
        killed.signal(signal.SIGKILL)
        killed.wait()
    if killed.process.exitcode == -signal.SIGKILL:
        assert killed.run() == ExitCode.DONE
    assert killed.losses() == whole.losses()
    assert same_tensors(killed.lora, whole.lora)
    assert same_tensors(killed.checkpoint(4) / "ema.safetensors", whole.checkpoint(4) / "ema.safetensors")


def test_dora_learns_magnitudes_and_an_adapter_can_be_the_start_of_another(start: AttemptStarter) -> None:
    first = start("first", **SHORT, use_dora=True)
    assert first.run() == ExitCode.DONE
    learned = load_file(first.lora)
    assert any("lora_magnitude_vector" in name for name in learned)
    settings = {**SHORT, "use_dora": True, "learning_rate": 0.0, "optimizer_config": "weight_decay=0"}
    second = start("second", **settings, init_lora=str(first.lora.parent))
    assert second.run() == ExitCode.DONE
    assert same_tensors(second.lora, first.lora)
    other_rank = start("third", **settings, lora_rank=8, init_lora=str(first.lora))
    assert other_rank.run() == ExitCode.BAD_CONFIG
    assert "lora_rank" in other_rank.data("failed")[0]["advice"]
    nowhere = start("fourth", **settings, init_lora="/nowhere")
    assert nowhere.run() == ExitCode.BAD_CONFIG
    assert "/nowhere" in nowhere.data("failed")[0]["message"]


@pytest.mark.parametrize(("precision", "worst"), [("int8-torchao", 0.02), ("fp8wo-torchao", 0.06), ("nf4-bnb", 0.6)])
def test_a_packed_base_is_smaller_and_answers_nearly_the_same(precision: str, worst: float) -> None:
    pytest.importorskip("torchao" if "torchao" in precision else "bitsandbytes")

    def answer(model: Any) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, 8, 8, generator=draw)
        texts = {"prompt_embeds": torch.randn(2, 8, 32, generator=draw)}
        texts["pooled_prompt_embeds"] = torch.randn(2, 32, generator=draw)
        with torch.no_grad():
            return FAMILY.predict(model, latents, torch.tensor([0.3, 0.7]), texts, 1.0)

    def loaded() -> Any:
        return FluxTransformer2DModel.from_pretrained(
            FIXTURE, subfolder="transformer", dtype=torch.float32, local_files_only=True
        )

    exact, packed = loaded(), loaded()
    layers = quantise(packed, precision, torch.device("cpu"))
    assert layers > 20
    difference = (answer(packed) - answer(exact)).norm() / answer(exact).norm()
    assert 0 < difference < worst
    assert quantise(exact, "no_change", torch.device("cpu")) == 0


def test_the_eval_loss_is_measured_on_held_out_pictures_without_touching_the_training(
    start: AttemptStarter, digits: Path
) -> None:
    entries = [
        {"id": "digits", "instance_data_dir": str(digits), "caption_strategy": "textfile"},
        {"id": "held-out", "dataset_type": "eval", "instance_data_dir": str(digits), "caption_strategy": "textfile"},
    ]
    plain = start("plain", **SHORT, dataloader=entries[:1])
    measured = start("measured", **SHORT, dataloader=entries, eval_steps_interval=3, eval_timesteps=2)
    assert plain.run() == measured.run() == ExitCode.DONE
    assert plain.losses() == measured.losses()
    found = {line["step"]: line["eval_loss"] for line in measured.data("metrics") if "eval_loss" in line}
    assert sorted(found) == [3, 4]
    assert all(0 < loss < 20 for loss in found.values())
    assert same_tensors(plain.lora, measured.lora)


def test_checkpoints_come_by_epochs(start: AttemptStarter) -> None:
    attempt = start(max_train_steps=0, num_train_epochs=3, checkpointing_steps=100, checkpoint_epoch_interval=1)
    assert attempt.run() == ExitCode.DONE
    per_epoch = max(attempt.losses()) // 3
    saved = sorted(int(path.name.split("-")[1]) for path in (attempt.work_dir / "checkpoints").iterdir())
    assert saved == [per_epoch, 2 * per_epoch, 3 * per_epoch]


def test_a_loss_that_is_no_number_names_its_samples(start: AttemptStarter, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = FAMILY.predict
    monkeypatch.setattr(type(FAMILY), "predict", lambda _self, *given: predict(*given) * float("nan"))
    attempt = start(max_train_steps=20, train_batch_size=2)
    assert attempt.run() == ExitCode.NAN_LOSS
    warnings = [line["message"] for line in attempt.data("warning") if line["code"] == "loss_not_finite"]
    assert len(warnings) == 9  # the tenth ends the attempt
    assert warnings[0].count("digits/") == 2
    failed = attempt.data("failed")[0]
    assert failed["kind"] == "nan_loss"
    assert "digits/" in failed["message"]


def crowded(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds at most so many pictures at once; returns how many each call had."""
    predict, seen = FAMILY.predict, list[int]()

    def limited(_self: Any, denoiser: Any, noisy: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(len(noisy))
        if len(noisy) > most:
            message = "CUDA out of memory. Tried to allocate 2.00 GiB"
            raise torch.OutOfMemoryError(message)
        return predict(denoiser, noisy, *others)

    monkeypatch.setattr(type(FAMILY), "predict", limited)
    return seen


def test_a_full_memory_is_met_with_smaller_parts_of_the_same_batch(
    start: AttemptStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SHORT, "lora_dropout": 0.0, "gradient_accumulation_steps": 2}
    roomy = start("roomy", **settings)
    assert roomy.run() == ExitCode.DONE
    with monkeypatch.context() as narrow:
        seen = crowded(narrow, 2)
        tight = start("tight", **settings)
        assert tight.run() == ExitCode.DONE
        assert seen[:2] == [4, 4]
        assert set(seen[2:]) == {2}
    said = [line["message"] for line in tight.data("warning") if line["code"] == "adapted"]
    assert len(said) == 2
    assert "again" in said[0]
    assert "2 parts" in said[1]
    assert tight.losses() == pytest.approx(roomy.losses(), rel=1e-4)
    assert state_of(tight.checkpoint(4))["memory"] == {"parts": 2, "recomputes_every": 0}
    mine, theirs = load_file(tight.lora), load_file(roomy.lora)
    assert all(torch.allclose(mine[key], theirs[key], atol=2e-3) for key in mine)
    with monkeypatch.context() as narrow:
        seen = crowded(narrow, 2)
        (tight.checkpoint(4) / "manifest.json").unlink()
        assert again(tight) == ExitCode.DONE
        assert set(seen) == {2}  # the rung of the checkpoint at step 2 is stood on again


def test_when_nothing_helps_the_failure_names_what_would(
    start: AttemptStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded(monkeypatch, 0)
    attempt = start(**SHORT)
    assert attempt.run() == ExitCode.OUT_OF_MEMORY
    said = [line["message"] for line in attempt.data("warning") if line["code"] == "adapted"]
    assert [
        word in sentence
        for word, sentence in zip(
            ("again", "2 parts", "4 parts", "every second block", "all blocks"), said, strict=True
        )
    ] == [True] * 5
    failed = attempt.data("failed")[0]
    assert failed["kind"] == "out_of_memory"
    assert "batch 4 at resolution 32, peak" in failed["message"]
    assert "int8-torchao" in failed["advice"]
    assert "resolution to 24" in failed["advice"]


def test_a_full_disk_ends_the_attempt_and_names_the_folder(start: AttemptStarter) -> None:
    """Real writes that find no room: the child may write no file above a size, as on a disk with a quota."""

    def allow_little() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    warm = start("warm", **SHORT)
    assert warm.run() == ExitCode.DONE
    full = start("full", **SHORT).fork(allow_little)
    assert full.wait() == ExitCode.DISK_FULL
    failed = full.data("failed")[0]
    assert failed["kind"] == "disk_full"
    assert str(full.work_dir / "checkpoints") in failed["message"]
    assert list((full.work_dir / "checkpoints").iterdir()) == []
    assert full.run() == ExitCode.DONE
    assert full.losses() == warm.losses()


def test_another_order_of_data_is_refused_and_a_threshold_stops_before_the_disk_is_full(start: AttemptStarter) -> None:
    first = start("first", **SHORT)
    assert first.run() == ExitCode.DONE
    assert state_of(first.checkpoint(2))["position"]["update"] == 2
    changed = start("first", **{**SHORT, "train_batch_size": 5})
    assert again(changed) == ExitCode.BAD_CONFIG
    assert "order" in changed.data("failed")[0]["message"]
    crowded = start("crowded", **SHORT, disk_low_threshold="9000T")
    assert crowded.run() == ExitCode.DISK_FULL
    failed = crowded.data("failed")[0]
    assert failed["kind"] == "disk_full"
    assert str(crowded.work_dir / "checkpoints") in failed["message"]
