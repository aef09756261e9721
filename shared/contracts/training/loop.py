"""What every training is told, whatever it trains: lengths, batches, rates, adapters, checkpoints, in one struct."""

import re
from typing import Any, Literal

import msgspec

from shared.contracts.training.delivery import DeliverySpec
from shared.contracts.training.problems import FieldProblem, problem

Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Optimizer = Literal[
    "adamw", "adamw_bf16", "torch-adamw", "optimi-adamw", "bnb-adamw", "torch-adam", "optimi-adam", "bnb-adam",
    "bnb-adamw8bit", "bnb-adamw8bit-paged", "lion", "optimi-lion", "bnb-lion", "bnb-lion8bit", "bnb-lion8bit-paged",
    "adafactor", "torch-adafactor", "prodigy",
]  # fmt: skip
"""Names that mean the same method are one optimizer here: its parameters are float32 whatever the base runs in."""


class CommonSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that the one training loop reads. Names are SimpleTuner's keys; a kind of training adds its own."""

    model_type: Literal["lora", "full"]
    pretrained_model_name_or_path: str
    revision: str | None = None
    variant: str | None = None
    seed: int = 42
    max_train_steps: int = 0
    num_train_epochs: int = 0
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    gradient_checkpointing_interval: int | None = None
    base_model_precision: Literal["no_change", "int8-torchao", "fp8wo-torchao", "nf4-bnb"] = "no_change"
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.1
    lora_init_type: Literal["default", "gaussian"] = "default"
    use_dora: bool = False
    init_lora: str | None = None
    peft_lora_target_modules: list[str] | None = None
    learning_rate: float = 1e-4
    lr_scheduler: Scheduler = "constant_with_warmup"
    lr_warmup_steps: int = 0
    lr_num_cycles: float = 1
    lr_power: float = 0.8
    lr_end: float = 4e-7
    optimizer: Optimizer = "adamw_bf16"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 2.0
    grad_clip_method: Literal["value", "norm"] = "value"
    use_ema: bool = False
    ema_decay: float = 0.995
    ema_update_interval: int = 1
    ema_warmup_steps: int = 0
    strict_epoch_limit: bool = False
    checkpoint_step_interval: int = 500
    checkpoint_epoch_interval: int | None = None
    checkpoints_total_limit: int = 5
    resume_from_checkpoint: str | None = "latest"
    disk_low_threshold: str | None = None
    validation_step_interval: int = 100
    validation_epoch_interval: int | None = None
    validation_on_startup: bool = False
    validation_disable: bool = False
    disable_benchmark: bool = False
    webhook_reporting_interval: int = 1
    dynamo_backend: Literal["no", "inductor", "cudagraphs", "eager", "aot_eager"] = "no"
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    dynamo_use_regional_compilation: bool = False
    """Compile one of the blocks that repeat and not the whole network."""
    disable_tf32: bool = False
    modelspec_comment: str | None = None
    delivery: DeliverySpec = DeliverySpec()
    ignored_keys: list[str] = []
    """Keys that were given, are known, and change nothing here."""

    @property
    def effective_lora_alpha(self) -> float:
        """An alpha that is not given equals the rank."""
        return self.lora_alpha if self.lora_alpha is not None else self.lora_rank

    @property
    def disk_low_bytes(self) -> int:
        """How much room a checkpoint must find; 0 when nothing is asked for."""
        return size_in_bytes(self.disk_low_threshold) if self.disk_low_threshold else 0


_SIZE = re.compile(r"(\d{1,15})([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def size_in_bytes(text: str) -> int:
    """`100G`, `50M` or plain bytes. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        message = "it is no size such as 10G, 500M or a number of bytes"
        raise ValueError(message)
    return int(match[1]) * _UNITS[match[2].upper()]


COMMON_LIMITS: dict[str, tuple[float, float]] = {
    "lora_rank": (1, 1024), "lora_dropout": (0, 0.99), "train_batch_size": (1, 1024), "learning_rate": (0, 1),
    "gradient_accumulation_steps": (1, 4096), "max_train_steps": (0, 10_000_000), "num_train_epochs": (0, 100_000),
    "lr_warmup_steps": (0, 10_000_000), "lr_end": (0, 1), "max_grad_norm": (0, 1e6), "ema_decay": (0, 1),
    "ema_update_interval": (1, 100_000), "checkpoint_step_interval": (1, 10_000_000),
    "checkpoints_total_limit": (1, 1000), "validation_step_interval": (1, 10_000_000), "seed": (0, 2**63 - 1),
    "webhook_reporting_interval": (1, 100_000), "adam_beta1": (0, 0.999999), "adam_beta2": (0, 0.999999),
    "adam_weight_decay": (0, 10), "adam_epsilon": (1e-16, 1), "gradient_checkpointing_interval": (1, 1000),
    "ema_warmup_steps": (0, 10_000_000), "checkpoint_epoch_interval": (1, 100_000), "lr_num_cycles": (0, 1000),
    "validation_epoch_interval": (1, 100_000), "lr_power": (0, 100), "lora_alpha": (0, 65536),
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
    """One of steps and epochs drives the length, or the shorter with `strict_epoch_limit`; with neither: one epoch."""
    steps, epochs = checked.get("max_train_steps"), checked.get("num_train_epochs")
    if steps and epochs and not checked.get("strict_epoch_limit"):
        advice = (
            "Set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs, or strict_epoch_limit "
            "to true to end with whichever comes first."
        )
        problems.append(problem("max_train_steps", "conflict", "both steps and epochs are set", advice))
    if steps == 0 and epochs == 0:
        problems.append(problem("max_train_steps", "conflict", "steps and epochs are both 0", "Set one of them."))
    if not steps and epochs is None:
        return {"max_train_steps": 0, "num_train_epochs": 1}
    return {"max_train_steps": steps or 0, "num_train_epochs": epochs or 0}
