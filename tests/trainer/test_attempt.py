# pyright: basic
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import FIXTURE, AttemptStarter
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from receiver import TOKEN, Receiver
from safetensors import safe_open
from safetensors.torch import load_file
from test_resume import slow_steps

from shared.contracts.run import DatasetRef, ExitCode, TrainerCommand
from trainer.control import Control
from trainer.diffusion import task
from trainer.files import sha256_of
from trainer.train import objective, precision

ROOT = Path(__file__).parents[2]
STORAGE = "/api/cloud/storage/outputs/jobs/job-1"
SAMPLING = {
    "validation_disable": False,
    "disable_benchmark": False,
    "validation_prompt": "a handwritten digit seven",
    "validation_resolution": "32",
    "validation_num_inference_steps": 2,
}


def render(pipeline: Any) -> torch.Tensor:
    pictures = pipeline(
        prompt="a handwritten digit three", num_inference_steps=4, width=32, height=32, max_sequence_length=16,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images  # fmt: skip
    return torch.from_numpy(pictures)


def test_the_lora_loads_in_diffusers_bit_for_bit_and_changes_the_picture(start: AttemptStarter) -> None:
    attempt = start(max_train_steps=12, checkpointing_steps=12, flux_lora_target="all+ffs", lora_alpha=8)
    assert attempt.run() == ExitCode.DONE
    pipeline = FluxPipeline.from_pretrained(FIXTURE, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    before = render(pipeline)
    pipeline.load_lora_weights(str(attempt.lora))
    stored, loaded = load_file(attempt.lora), dict(pipeline.transformer.named_parameters())
    for name, tensor in stored.items():
        module, _, rest = name.removeprefix("transformer.").rpartition(".lora_")
        assert torch.equal(loaded[f"{module}.lora_{rest.replace('.weight', '')}.default_0.weight"], tensor)
    layer = pipeline.transformer.transformer_blocks[0].attn.to_q
    assert layer.scaling == {"default_0": 2.0}
    with_lora = render(pipeline)
    assert (with_lora - before).abs().max() > 0.05
    pipeline.unload_lora_weights()
    assert torch.allclose(render(pipeline), before, atol=1e-5)
    with safe_open(attempt.lora, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_alpha"] == "8"
    assert metadata["tunewright.job_id"] == "job-1"
    assert len(metadata["tunewright.config_hash"]) == 64
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.r"] == 4


def test_a_whole_run_reaches_the_gateway(start: AttemptStarter, receiver: Receiver, digits: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(digits, arcname=".")
    receiver.files["/files/digits.tar"] = stream.getvalue()
    archive = stream.getvalue()
    ref = DatasetRef(
        id="digits",
        sha256=hashlib.sha256(archive).hexdigest(),
        size_bytes=len(archive),
        url="/files/digits.tar",
    )
    entry = {"id": "digits", "instance_data_dir": "/only/at/the/users", "caption_strategy": "textfile"}
    attempt = start("whole", gateway=receiver, datasets=[ref], dataloader=[entry], **SAMPLING)
    assert attempt.run() == ExitCode.DONE
    received, prefix = receiver.received, f"{STORAGE}/whole"
    assert sorted(received.lines) == list(range(1, len(received.lines) + 1))
    assert received.types[0] == "hello"
    assert received.types[-1] == "done"
    assert [data["step"] for data in received.of_type("metrics")] == [1, 2, 3, 4, 5, 6]
    assert [data["step"] for data in received.of_type("sample")] == [0, 6]
    assert [data["step"] for data in received.of_type("checkpoint")] == [2, 4, 6]
    phases = [data["phase"] for data in received.of_type("phase")]
    assert phases[0] == "preparing"
    assert phases[-1] == "uploading"
    done = received.of_type("done")[0]
    assert done["undelivered"] == []
    assert [each["name"] for each in done["artifacts"]] == ["pytorch_lora_weights.safetensors", "manifest.json"]
    assert done["artifacts"] == [
        {key: value for key, value in data.items() if key != "content_type"} for data in received.of_type("artifact")
    ]
    for files in [done["artifacts"], *(data["files"] for data in received.of_type("checkpoint"))]:
        for file in files:
            stored = received.uploads[f"/api/cloud/storage/outputs/{file['object_key']}"]
            assert hashlib.sha256(stored).hexdigest() == file["sha256"]
            assert len(stored) == file["size_bytes"]
    assert received.uploads[f"{prefix}/pytorch_lora_weights.safetensors"] == attempt.lora.read_bytes()
    ours = [path.rpartition("/")[2] for path in received.upload_order if "/checkpoint-4/" in path]
    assert ours[-1] == "manifest.json"
    for path in attempt.work_dir.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_gateway_that_is_away_delays_delivery_but_not_training(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.stop()
    attempt = start("patient", gateway=receiver).fork()
    attempt.wait_for(lambda: bool(attempt.data("phase")) and len(attempt.losses()) == 6)
    receiver.start()
    assert attempt.wait() == ExitCode.DONE
    lines = receiver.received.lines
    assert sorted(lines) == list(range(1, len(lines) + 1))
    assert receiver.received.types[-1] == "done"
    assert receiver.received.of_type("done")[0]["undelivered"] == []
    assert f"{STORAGE}/patient/pytorch_lora_weights.safetensors" in receiver.received.uploads


def test_a_gateway_that_never_comes_back_leaves_the_result_on_disk(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.stop()
    attempt = start("alone", gateway=receiver, drain_s=0.5)
    assert attempt.run() == ExitCode.DONE
    undelivered = attempt.data("done")[0]["undelivered"]
    assert undelivered == ["pytorch_lora_weights.safetensors", "manifest.json"]  # a checkpoint is no result
    assert attempt.lora.exists()
    receiver.start()
    assert attempt.run() == ExitCode.DONE  # the same folder again: only reports are left to deliver
    assert receiver.received.types[-1] == "done"
    assert receiver.received.types.count("done") == 1


def test_a_superseded_attempt_stops_without_uploading(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.answer_reports = lambda lines: 409 if any(line.type == "metrics" for line in lines) else 200
    attempt = start("old", gateway=receiver, max_train_steps=500, checkpointing_steps=400)
    assert attempt.run() == ExitCode.SUPERSEDED
    assert receiver.received.uploads == {}
    assert attempt.data("failed") == []


def test_a_refused_upload_is_named_and_the_run_still_ends_well(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.answer_uploads = lambda path: 413 if path.endswith("manifest.json") else 200
    attempt = start("refused", gateway=receiver, max_train_steps=2)
    assert attempt.run() == ExitCode.DONE
    assert receiver.received.of_type("done")[0]["undelivered"] == ["manifest.json"]


def test_a_refused_checkpoint_does_not_make_the_results_incomplete(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.answer_uploads = lambda path: 413 if "/checkpoint-" in path else 200
    attempt = start("lean", gateway=receiver, max_train_steps=2)
    assert attempt.run() == ExitCode.DONE
    assert receiver.received.of_type("done")[0]["undelivered"] == []
    assert "upload_refused" in [data["code"] for data in receiver.received.of_type("warning")]


def test_commands_save_and_stop_at_the_next_step(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.commands = [TrainerCommand(id="1", name="stop")]
    attempt = start("told", gateway=receiver, max_train_steps=400, checkpointing_steps=400).fork(slow_steps)
    assert attempt.wait() == ExitCode.PREEMPTED
    assert receiver.received.of_type("failed")[0]["kind"] == "preempted"


def test_a_preempted_attempt_delivers_its_checkpoint_first(start: AttemptStarter, receiver: Receiver) -> None:
    attempt = start("moved", gateway=receiver, max_train_steps=400, checkpointing_steps=400).fork(slow_steps)
    attempt.wait_for_step(3)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.PREEMPTED
    kinds = [name for name in receiver.received.types if name in {"checkpoint", "failed"}]
    assert kinds == ["checkpoint", "failed"]
    step = receiver.received.of_type("checkpoint")[0]["step"]
    assert f"{STORAGE}/moved/checkpoint-{step}/manifest.json" in receiver.received.uploads


def test_a_second_signal_ends_the_process_at_once(start: AttemptStarter, receiver: Receiver) -> None:
    receiver.delay_s = 0.2
    receiver.answer_uploads = lambda _path: 503  # the first signal leaves it waiting to deliver
    attempt = start("impatient", gateway=receiver, max_train_steps=400, checkpointing_steps=400).fork(slow_steps)
    attempt.wait_for_step(3)
    attempt.signal(signal.SIGTERM)
    attempt.wait_for((attempt.work_dir / "checkpoints").exists)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait(60) == 128 + signal.SIGTERM


def test_a_refused_config_exits_64_with_every_problem(start: AttemptStarter) -> None:
    attempt = start("bad", lora_rnk=4, optimizer="soap")
    assert attempt.run() == ExitCode.BAD_CONFIG
    failed = attempt.data("failed")[0]
    assert failed["kind"] == "bad_config"
    assert "lora_rnk" in failed["message"]
    assert "soap" in failed["message"]
    assert "Did you mean lora_rank?" in failed["advice"]


@pytest.mark.parametrize("name", ["/nowhere/model", "some-owner/some-model"])
def test_a_missing_base_model_exits_69_with_advice(start: AttemptStarter, name: str) -> None:
    attempt = start("missing", pretrained_model_name_or_path=name)
    assert attempt.run() == ExitCode.UNREACHABLE
    failed = attempt.data("failed")[0]
    assert failed["kind"] == "unreachable"
    assert "HF_HUB_OFFLINE" in failed["advice"]


def test_without_a_token_nothing_starts(start: AttemptStarter, receiver: Receiver, tmp_path: Path) -> None:
    attempt = start("anonymous", gateway=receiver)
    (tmp_path / "anonymous.token").write_text("")
    assert attempt.run() == ExitCode.BAD_CONFIG
    assert not attempt.work_dir.exists()


def test_a_missing_dataset_exits_65(start: AttemptStarter) -> None:
    attempt = start("nodata", dataloader=[{"id": "d", "instance_data_dir": "/nowhere"}])
    assert attempt.run() == ExitCode.BAD_DATA
    assert attempt.data("failed")[0]["kind"] == "bad_data"


def test_ten_losses_in_a_row_that_are_not_finite_end_the_attempt(
    start: AttemptStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_losses = objective.training_losses
    monkeypatch.setattr(task, "training_losses", lambda *inputs: (loss * float("nan") for loss in true_losses(*inputs)))
    attempt = start("nan", max_train_steps=50, checkpointing_steps=50)
    assert attempt.run() == ExitCode.NAN_LOSS
    assert attempt.data("failed")[0]["kind"] == "nan_loss"
    assert len(attempt.data("warning")) == 9
    assert all(line["loss"] is None for line in attempt.data("metrics"))


@pytest.mark.parametrize(
    ("error", "settings", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), {}, "base_model_precision to int8-torchao"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), {"base_model_precision": "int8-torchao"}, "resolution to 24"),
        (MemoryError(), {"gradient_checkpointing": True, "train_batch_size": 1}, "resolution to 24"),
    ],
)
def test_running_out_of_memory_names_the_setting_that_helps(
    start: AttemptStarter, monkeypatch: pytest.MonkeyPatch, error: Exception, settings: Any, advice: str
) -> None:
    def exhausted(*_inputs: object) -> None:
        raise error

    monkeypatch.setattr(task, "training_losses", exhausted)
    attempt = start("oom", **settings)
    assert attempt.run() == ExitCode.OUT_OF_MEMORY
    assert advice in attempt.data("failed")[0]["advice"]


def test_a_bug_becomes_an_internal_failure(start: AttemptStarter, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_inputs: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(task, "training_losses", broken)
    attempt = start("bug")
    assert attempt.run() == ExitCode.INTERNAL
    assert attempt.data("failed")[0]["message"] == "RuntimeError: shapes differ"


def test_bfloat16_becomes_float32_where_the_cpu_has_none_and_says_so(
    start: AttemptStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)
    attempt = start("fp32", mixed_precision="bf16", max_train_steps=1)
    assert attempt.run() == ExitCode.DONE
    assert [data["code"] for data in attempt.data("warning")] == ["precision_changed"]


def test_gradient_checkpointing_changes_memory_and_not_the_result(start: AttemptStarter) -> None:
    plain, saving = start("plain", max_train_steps=2), start("saving", max_train_steps=2, gradient_checkpointing=True)
    assert plain.run() == saving.run() == ExitCode.DONE
    assert plain.losses() == pytest.approx(saving.losses(), rel=1e-5)


def test_rendering_while_training_changes_nothing(start: AttemptStarter) -> None:
    quiet = start("quiet", use_ema=True)
    looking = start("looking", use_ema=True, **{**SAMPLING, "validation_steps": 2})
    assert quiet.run() == looking.run() == ExitCode.DONE
    assert quiet.losses() == looking.losses()
    assert (looking.work_dir / "output" / "ema" / "pytorch_lora_weights.safetensors").exists()
    assert [data["step"] for data in looking.data("sample")] == [0, 2, 2, 4, 4, 6, 6]
    mine, theirs = load_file(quiet.lora), load_file(looking.lora)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_learning_rate_follows_its_schedule(start: AttemptStarter) -> None:
    attempt = start("rates", lr_scheduler="linear", max_train_steps=6, lr_warmup_steps=2, learning_rate=0.01)
    assert attempt.run() == ExitCode.DONE
    assert [line["lr"] for line in attempt.data("metrics")] == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_the_command_line_runs_a_job_and_keeps_the_token_secret(start: AttemptStarter, receiver: Receiver) -> None:
    attempt = start("cli", gateway=receiver, max_train_steps=1)
    options = attempt.options
    command = [
        sys.executable, "-m", "trainer", "run", "--spec", str(options.spec_path), "--token-file",
        str(options.token_file), "--work-dir", str(options.work_dir), "--device", "cpu",
        "--cache-dir", str(options.cache_dir),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=280, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr.decode()
    assert TOKEN.encode() not in done.stdout + done.stderr
    assert receiver.received.types[-1] == "done"
    assert all(TOKEN.encode() not in path.read_bytes() for path in options.work_dir.rglob("*") if path.is_file())


def test_sha256_of_a_file_is_the_one_the_manifest_holds(start: AttemptStarter) -> None:
    attempt = start("sums", max_train_steps=2)
    assert attempt.run(Control()) == ExitCode.DONE
    manifest = json.loads((attempt.checkpoint(2) / "manifest.json").read_text())
    assert {name: sha256_of(attempt.checkpoint(2) / name) for name in manifest["files"]} == {
        name: file["sha256"] for name, file in manifest["files"].items()
    }
