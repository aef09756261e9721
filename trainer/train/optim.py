# pyright: basic
"""AdamW and the learning-rate schedules. A rate is a pure function of the step, so a schedule has no state to save."""

import math

import torch
from torch import nn

from shared.contracts.training.loop import CommonSpec


def build_optimizer(parameters: list[nn.Parameter], spec: CommonSpec) -> torch.optim.Optimizer:
    """Fused AdamW with float32 state."""
    return torch.optim.AdamW(
        parameters,
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        weight_decay=spec.adam_weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, total_steps: int, spec: CommonSpec) -> float:
    """The rate for update number `step`, counted from 0."""
    if spec.lr_scheduler == "constant":
        return spec.learning_rate
    if step < spec.lr_warmup_steps:
        return spec.learning_rate * (step + 1) / spec.lr_warmup_steps
    if spec.lr_scheduler == "constant_with_warmup":
        return spec.learning_rate
    progress = (step - spec.lr_warmup_steps) / max(1, total_steps - spec.lr_warmup_steps)
    if spec.lr_scheduler == "linear":
        return spec.learning_rate * max(0.0, 1.0 - progress)
    if spec.lr_scheduler == "polynomial":
        floor = min(spec.lr_end, spec.learning_rate)
        return floor + (spec.learning_rate - floor) * max(0.0, 1.0 - progress) ** spec.lr_power
    # Cosine with `lr_num_cycles` half waves: 1 falls once from the full rate to lr_end.
    floor = min(spec.lr_end, spec.learning_rate)
    wave = 0.5 * (1.0 + math.cos(math.pi * spec.lr_num_cycles * min(1.0, progress)))
    return floor + (spec.learning_rate - floor) * wave


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
