# pyright: basic
"""The loss of a batch: noise it, ask the network, measure how far the answer is from the target."""

import math
from dataclasses import dataclass
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


def training_loss(
    family: Family, denoiser: Any, batch: Batch, noising: Noising, noise: Generator, spec: DiffusionSpec
) -> Tensor:
    """The mean over the batch of each picture's weighted error, a scalar with gradient.

    Noise is drawn on the CPU from one generator, so the same seed gives the same draws on every device.
    """
    noised = noising.draw(batch.latents, noise)
    predicted = family.predict(denoiser, noised.noisy, noised.time, batch.conditioning, spec.flux_guidance_value)
    errors = errors_of(predicted.float(), noised, spec).flatten(1).mean(1)
    return (errors if noised.weight is None else errors * noised.weight).mean()


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
