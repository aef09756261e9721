# pyright: basic
"""The loss of a batch: noise it, ask the network, measure how far the answer is from the target."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Generator, Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.families.protocol import Conditioning, Family
from trainer.train.noising import STEPS, Noised, Noising


@dataclass
class Batch:
    """Clean latents [B, C, h, w] and the conditioning of the same pictures, on the training device."""

    latents: Tensor
    conditioning: Conditioning


def training_losses(
    family: Family, denoiser: Any, batch: Batch, noising: Noising, noise: Generator, spec: DiffusionSpec, parts: int = 1
) -> Iterator[Tensor]:
    """The mean over the batch of each picture's weighted error, as that many scalars with gradient of the same sum.

    Noise is drawn on the CPU from one generator and for the whole batch, so the same seed gives the same draws on every
    device and in however many parts. The backward pass of each part should come before the next is asked for.
    """
    noised = noising.draw(batch.latents, noise)
    count = len(batch.latents)
    size = -(-count // parts)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        part = rows_of(noised, rows)
        conditioning = {name: tensor[rows] for name, tensor in batch.conditioning.items()}
        predicted = family.predict(denoiser, part.noisy, part.time, conditioning, spec.flux_guidance_value)
        errors = errors_of(predicted.float(), part, spec).flatten(1).mean(1)
        yield (errors if part.weight is None else errors * part.weight).sum() / count


def training_loss(
    family: Family, denoiser: Any, batch: Batch, noising: Noising, noise: Generator, spec: DiffusionSpec
) -> Tensor:
    """The mean over the batch of each picture's weighted error, in one scalar."""
    return next(training_losses(family, denoiser, batch, noising, noise, spec))


def rows_of(noised: Noised, rows: slice) -> Noised:
    """Some pictures of a batch."""
    kept: dict[str, Any] = {field.name: getattr(noised, field.name) for field in fields(noised)}
    chosen: dict[str, Any] = {name: None if value is None else value[rows] for name, value in kept.items()}
    return Noised(**chosen)


def errors_of(predicted: Tensor, noised: Noised, spec: DiffusionSpec) -> Tensor:
    """The error of every number, by `loss_type`: squared, or squared near 0 and straight beyond a bend."""
    difference = predicted - noised.target.float()
    if spec.loss_type == "l2":
        return difference.square()
    bend = bends(noised, spec).view(-1, *[1] * (difference.dim() - 1))
    straight = 2 * (torch.sqrt(difference.square() + bend.square()) - bend)
    return straight * bend if spec.loss_type == "huber" else straight


def bends(noised: Noised, spec: DiffusionSpec) -> Tensor:
    """Where the error goes over from squared to straight, [B], by `huber_schedule`: lower means more forgiving."""
    lowest = spec.huber_c
    if spec.huber_schedule == "exponential":
        return torch.exp(noised.step.float() * math.log(lowest) / STEPS)
    if spec.huber_schedule == "snr":
        return (1 - lowest) / (1 + noised.noise_to_signal.float()).square() + lowest
    return torch.full_like(noised.step, lowest, dtype=torch.float32)
