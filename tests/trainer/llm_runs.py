# pyright: basic
"""Start attempts that train a tiny Qwen2, with a small, quick configuration in the sections that users write."""

import json
from pathlib import Path
from typing import Any

import msgspec
from attempts import Attempt

from shared.contracts.run import ResumePoint, RunSpec
from trainer.entry.attempt import Options
from trainer.llm import session as _preloaded  # noqa: F401 -- imports transformers and PEFT before the first fork
from trainer.train.checkpoint import checkpoints_in

TRAINING: dict[str, Any] = {
    "method": "sft",
    "max_steps": 6,
    "learning_rate": 1e-2,
    "batch_size": 8,
    "max_seq_length": 96,
    "lora_r": 8,
    "lora_alpha": 16,
    "gradient_checkpointing": False,
    "bf16": False,
    "save_steps": 2,
    "eval_steps": 1000,
    "seed": 11,
}


class LlmAttempts:
    """A factory; keyword arguments go into the `training` section, `top` into the config beside it."""

    def __init__(self, folder: Path, model: Path, dataset: Path) -> None:
        self._folder, self._model, self._dataset = folder, model, dataset

    def __call__(
        self, name: str = "attempt", *, dataset: Any = None, top: dict[str, Any] | None = None, gateway: Any = None,
        dataloader: list[dict[str, Any]] | None = None, datasets: list[Any] | None = None,
        resume: ResumePoint | None = None, **training: Any,
    ) -> Attempt:  # fmt: skip
        config = {"model": str(self._model), "training": {**TRAINING, **training}, **(top or {})}
        if dataloader is None:
            config["dataset"] = dataset if dataset is not None else str(self._dataset)
        run = RunSpec(
            job_id="job-1", attempt_id=name, attempt_number=1,
            gateway_url=gateway.url if gateway is not None else None,
            config=config, dataloader=dataloader or [], datasets=datasets or [], resume=resume,
            output_prefix=f"jobs/job-1/{name}",
        )  # fmt: skip
        spec_path = self._folder / f"{name}.json"
        spec_path.write_bytes(msgspec.json.encode(run))
        token_file = None
        if gateway is not None:
            token_file = self._folder / f"{name}.token"
            token_file.write_text(gateway.token + "\n", encoding="utf-8")
        return Attempt(
            Options(
                spec_path=spec_path, work_dir=self._folder / name, token_file=token_file, device="cpu",
                cache_dir=self._folder / "cache", drain_s=20, grace_s=10, fetch_s=10,
            )
        )  # fmt: skip


def evaluations(attempt: Attempt) -> dict[int, dict[str, Any]]:
    """The metrics lines of held-out rows, by step."""
    return {line["step"]: line for line in attempt.data("metrics") if "eval_loss" in line}


def step_losses(attempt: Attempt) -> dict[int, float]:
    """The loss of every step, from the lines that report steps."""
    return {line["step"]: line["loss"] for line in attempt.data("metrics") if "eval_loss" not in line}


def newest_checkpoint(attempt: Attempt) -> Path:
    return checkpoints_in(attempt.work_dir / "checkpoints")[0].path


def stored_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
