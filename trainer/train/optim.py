# pyright: basic
"""Optimizers and learning-rate schedules. A rate is a pure function of the step, so a schedule has no state to save."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from shared.contracts.training.loop import CommonSpec
from trainer.failures import AttemptFailed
from trainer.train.lion import Lion


def build_optimizer(parameters: list[nn.Parameter], spec: CommonSpec) -> torch.optim.Optimizer:
    """The optimizer that `spec.optimizer` names, over float32 parameters.

    `adamw_bf16` is AdamW in float32 here: nothing is rounded, so nothing has to be rounded by chance. The `optimi-` and
    `bnb-` names of a method are that method; `-paged` asks where state lies, which changes nothing. State of the 8-bit
    ones is kept in blocks of 8-bit numbers. Raises AttemptFailed(bad_config) when a library is not on this machine.
    """
    rate, betas, decay = spec.learning_rate, (spec.adam_beta1, spec.adam_beta2), spec.adam_weight_decay
    usual: dict[str, Any] = {"lr": rate, "betas": betas, "eps": spec.adam_epsilon, "weight_decay": decay}
    without_eps = {"lr": rate, "betas": betas, "weight_decay": decay}
    built: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adamw": lambda: torch.optim.AdamW(parameters, **usual, fused=True),
        "adam": lambda: torch.optim.Adam(parameters, **usual, fused=True),
        "lion": lambda: Lion(parameters, **without_eps),
        "adafactor": lambda: torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay),
        "adamw8bit": lambda: _library("bitsandbytes", spec).optim.AdamW8bit(parameters, **usual),
        "lion8bit": lambda: _library("bitsandbytes", spec).optim.Lion8bit(parameters, **without_eps),
        "prodigy": lambda: _library("prodigyopt", spec).Prodigy(parameters, **usual, safeguard_warmup=True),
    }
    return built[method_of(spec.optimizer)]()


def method_of(name: str) -> str:
    """What an optimizer's name means, whichever library it is named after."""
    plain = name.removeprefix("torch-").removeprefix("optimi-").removeprefix("bnb-")
    return plain.removesuffix("-paged").removesuffix("_bf16")


def _library(name: str, spec: CommonSpec) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        message = f"optimizer {spec.optimizer} needs {name}, which this machine does not have"
        raise AttemptFailed("bad_config", message, "Use optimizer adamw, or install the trainer's lock.") from error


def learning_rate_at(step: int, total_steps: int, spec: CommonSpec) -> float:
    """The rate for update number `step`, counted from 0."""
    if spec.lr_scheduler == "constant":
        return spec.learning_rate
    if step < spec.lr_warmup_steps:
        return spec.learning_rate * (step + 1) / spec.lr_warmup_steps
    if spec.lr_scheduler == "constant_with_warmup":
        return spec.learning_rate
    progress = min(1.0, (step - spec.lr_warmup_steps) / max(1, total_steps - spec.lr_warmup_steps))
    if spec.lr_scheduler == "linear":
        return spec.learning_rate * (1.0 - progress)
    floor = min(spec.lr_end, spec.learning_rate)
    return floor + (spec.learning_rate - floor) * _share_at(progress, spec)


def _share_at(progress: float, spec: CommonSpec) -> float:
    """How much of the way between `lr_end` and the full rate is left, for `progress` in 0..1."""
    if spec.lr_scheduler == "polynomial":
        return (1.0 - progress) ** spec.lr_power
    if spec.lr_scheduler == "cosine_with_restarts":
        # Each of the cycles falls to lr_end, and the next begins at the full rate again.
        turn = spec.lr_num_cycles * progress
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 if progress >= 1.0 else turn % 1.0)))
    # Cosine with `lr_num_cycles` half waves: 1 falls once from the full rate to lr_end.
    return 0.5 * (1.0 + math.cos(math.pi * spec.lr_num_cycles * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: list[nn.Parameter], spec: CommonSpec) -> float:
    """Limit gradients as configured and return their norm before that; a limit of 0 means none."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if spec.max_grad_norm > 0 and spec.grad_clip_method == "norm":
        torch.nn.utils.clip_grads_with_norm_(parameters, spec.max_grad_norm, norm)
    elif spec.max_grad_norm > 0:
        torch.nn.utils.clip_grad_value_(parameters, spec.max_grad_norm)
    return float(norm)
