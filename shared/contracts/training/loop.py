"""What every training is told, whatever it trains: lengths, batches, rates, adapters, checkpoints, in one struct."""

from typing import Any, Literal

import msgspec

from shared.contracts.training.delivery import DeliverySpec
from shared.contracts.training.problems import FieldProblem, problem

Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


class CommonSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that the one training loop reads. Names are SimpleTuner's keys; a kind of training adds its own."""

    model_type: Literal["lora"]
    pretrained_model_name_or_path: str
    revision: str | None = None
    variant: str | None = None
    seed: int = 42
    max_train_steps: int = 0
    num_train_epochs: int = 0
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.1
    lora_init_type: Literal["default", "gaussian"] = "default"
    peft_lora_target_modules: list[str] | None = None
    learning_rate: float = 1e-4
    lr_scheduler: Scheduler = "constant_with_warmup"
    lr_warmup_steps: int = 0
    lr_num_cycles: float = 1
    lr_power: float = 0.8
    lr_end: float = 4e-7
    optimizer: Literal["adamw", "adamw_bf16"] = "adamw_bf16"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 2.0
    grad_clip_method: Literal["value", "norm"] = "value"
    use_ema: bool = False
    ema_decay: float = 0.995
    ema_update_interval: int = 1
    checkpoint_step_interval: int = 500
    checkpoints_total_limit: int = 5
    resume_from_checkpoint: str | None = "latest"
    validation_step_interval: int = 100
    validation_on_startup: bool = False
    validation_disable: bool = False
    disable_benchmark: bool = False
    webhook_reporting_interval: int = 1
    modelspec_comment: str | None = None
    delivery: DeliverySpec = DeliverySpec()
    ignored_keys: list[str] = []
    """Keys that were given, are known, and change nothing here."""

    @property
    def effective_lora_alpha(self) -> float:
        """An alpha that is not given equals the rank."""
        return self.lora_alpha if self.lora_alpha is not None else self.lora_rank


COMMON_LIMITS: dict[str, tuple[float, float]] = {
    "lora_rank": (1, 1024), "lora_dropout": (0, 0.99), "train_batch_size": (1, 1024), "learning_rate": (0, 1),
    "gradient_accumulation_steps": (1, 4096), "max_train_steps": (0, 10_000_000), "num_train_epochs": (0, 100_000),
    "lr_warmup_steps": (0, 10_000_000), "lr_end": (0, 1), "max_grad_norm": (0, 1e6), "ema_decay": (0, 1),
    "ema_update_interval": (1, 100_000), "checkpoint_step_interval": (1, 10_000_000),
    "checkpoints_total_limit": (1, 1000), "validation_step_interval": (1, 10_000_000), "seed": (0, 2**63 - 1),
    "webhook_reporting_interval": (1, 100_000), "adam_beta1": (0, 0.999999), "adam_beta2": (0, 0.999999),
    "adam_weight_decay": (0, 10), "adam_epsilon": (1e-16, 1),
}  # fmt: skip
"""The smallest and the largest value of each number, both allowed."""


def range_problems(checked: dict[str, Any], limits: dict[str, tuple[float, float]]) -> list[FieldProblem]:
    """One problem for each number outside its limits."""
    return [
        problem(name, "out_of_range", f"{value} is outside {low:g} to {high:g}", f"Choose from {low:g} to {high:g}.")
        for name, (low, high) in limits.items()
        if (value := checked.get(name)) is not None and not low <= value <= high
    ]


def steps_or_epochs(checked: dict[str, Any], problems: list[FieldProblem]) -> dict[str, int]:
    """Exactly one of steps and epochs drives the length; with neither given it is one epoch."""
    steps, epochs = checked.get("max_train_steps"), checked.get("num_train_epochs")
    if steps and epochs:
        advice = "Set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs."
        problems.append(problem("max_train_steps", "conflict", "both steps and epochs are set", advice))
    if steps == 0 and epochs == 0:
        problems.append(problem("max_train_steps", "conflict", "steps and epochs are both 0", "Set one of them."))
    if not steps and epochs is None:
        return {"max_train_steps": 0, "num_train_epochs": 1}
    return {"max_train_steps": steps or 0, "num_train_epochs": epochs or 0}
