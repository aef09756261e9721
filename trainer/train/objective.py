# pyright: basic
"""Flow matching: draw a time, mix clean latents with noise, ask the network for the difference."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.families.protocol import Conditioning, Family

_AUTO_SHIFT_LOW = (256, 0.5)
_AUTO_SHIFT_HIGH = (4096, 1.15)


@dataclass
class Batch:
    """Clean latents [B, C, h, w] and the conditioning of the same pictures, on the training device."""

    latents: Tensor
    conditioning: Conditioning


def draw_sigma(count: int, noise: Generator, spec: DiffusionSpec, sequence_length: int) -> Tensor:
    """Noise levels [count] in 0..1 as configured: sigmoid-normal or uniform, then shifted towards noise."""
    if spec.flow_use_uniform_schedule:
        sigma = torch.rand(count, generator=noise)
    else:
        sigma = torch.sigmoid(spec.flow_sigmoid_scale * torch.randn(count, generator=noise))
    shift = _auto_shift(sequence_length) if spec.flow_schedule_auto_shift else spec.flow_schedule_shift
    return sigma * shift / (1 + (shift - 1) * sigma) if shift > 0 else sigma


def training_loss(family: Family, denoiser: Any, batch: Batch, noise: Generator, spec: DiffusionSpec) -> Tensor:
    """The mean squared error of the predicted n - x0, a scalar with gradient.

    Noise is drawn on the CPU from one generator, so the same seed gives the same draws on every device.
    """
    clean = batch.latents
    drawn = torch.randn(clean.shape, generator=noise).to(clean.device, clean.dtype)
    sigma = draw_sigma(len(clean), noise, spec, family.sequence_length(clean)).to(clean.device, clean.dtype)
    weight = sigma.view(-1, *[1] * (clean.dim() - 1))
    noisy = torch.lerp(clean, drawn, weight)
    predicted = family.predict(denoiser, noisy, sigma, batch.conditioning, spec.flux_guidance_value)
    return torch.nn.functional.mse_loss(predicted.float(), (drawn - clean).float())


def _auto_shift(sequence_length: int) -> float:
    """exp(mu), mu linear in the number of image tokens as the FLUX scheduler has it."""
    (low, mu_low), (high, mu_high) = _AUTO_SHIFT_LOW, _AUTO_SHIFT_HIGH
    return math.exp(mu_low + (mu_high - mu_low) * (sequence_length - low) / (high - low))
