# pyright: basic
"""What a batch becomes before the network sees it: how much noise, which target. All chance from one CPU generator."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Generator, Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.failures import AttemptFailed
from trainer.families.protocol import BaseModel, Family
from trainer.families.scheduled import noise_schedule

STEPS = 1000
"""Noise steps of every base; flow's times 0..1 count as 0..1000 where steps are asked for."""
_AUTO_SHIFT_LOW = (256, 0.5)
_AUTO_SHIFT_HIGH = (4096, 1.15)


@dataclass(frozen=True)
class Noised:
    """A batch with noise in it. All but pictures are [B]; `weight` multiplies each picture's error."""

    noisy: Tensor
    target: Tensor
    time: Tensor
    """As `Family.predict` takes it."""
    step: Tensor
    """0..1000."""
    noise_to_signal: Tensor
    """Deviation of the noise over that of the picture in `noisy`."""
    weight: Tensor | None = None


class Noising(Protocol):
    """One objective with its settings."""

    def draw(self, clean: Tensor, noise: Generator) -> Noised:
        """Noise for clean latents [B, C, h, w], with the same draws on every device for one state of `noise`."""
        ...


def noising_for(family: Family, base: BaseModel, spec: DiffusionSpec) -> Noising:
    """The noising that the base was trained with, changed as configured. Raises AttemptFailed(bad_config)."""
    objective = family.objective(base)
    if objective == "flow":
        return FlowNoising(family, spec)
    return ScheduleNoising(noise_schedule(base), spec, velocity=objective == "v_prediction")


class FlowNoising:
    """Flow matching: a straight line from the picture to noise; the target is noise minus clean."""

    def __init__(self, family: Family, spec: DiffusionSpec) -> None:
        self._family, self._spec = family, spec
        self._fixed = custom_levels(spec)

    def draw(self, clean: Tensor, noise: Generator) -> Noised:
        """A point on the line, at a drawn noise level."""
        drawn, fed = _noise_like(clean, noise, self._spec)
        levels = self.levels(len(clean), noise, self._family.sequence_length(clean))
        time = levels.to(clean.device, clean.dtype)
        noisy = torch.lerp(clean, fed, _by_picture(time, clean))
        return Noised(noisy, drawn - clean, time, time * STEPS, time / (1 - time).clamp_min(1e-6))

    def levels(self, count: int, noise: Generator, sequence_length: int) -> Tensor:
        """Noise levels [count] in 0..1 as configured, shifted towards noise; given levels are taken as they are."""
        spec = self._spec
        if self._fixed is not None:
            return self._fixed[torch.randint(len(self._fixed), (count,), generator=noise)]
        if spec.flow_use_beta_schedule:
            level = _beta(count, spec.flow_beta_schedule_alpha, spec.flow_beta_schedule_beta, noise)
        elif spec.flow_use_uniform_schedule:
            level = torch.rand(count, generator=noise)
        else:
            level = torch.sigmoid(spec.flow_sigmoid_scale * torch.randn(count, generator=noise))
        shift = _auto_shift(sequence_length) if spec.flow_schedule_auto_shift else spec.flow_schedule_shift
        return level * shift / (1 + (shift - 1) * level) if shift > 0 else level


class ScheduleNoising:
    """A base's own schedule of noise steps; the target is the noise, or the velocity where the base gives that."""

    def __init__(self, schedule: dict[str, Any], spec: DiffusionSpec, *, velocity: bool) -> None:
        if schedule.get("rescale_betas_zero_snr") and not velocity:
            advice = "Set prediction_type to v_prediction, or leave rescale_betas_zero_snr off."
            raise AttemptFailed("bad_config", "a base that predicts noise has nothing to learn at zero signal", advice)
        build: Any = DDPMScheduler
        self._spec, self._velocity = spec, velocity
        self._signal_share: Tensor = build.from_config(schedule).alphas_cumprod
        """The picture's share of the variance at each step, falling."""
        self._odds = step_odds(len(self._signal_share), spec)

    def draw(self, clean: Tensor, noise: Generator) -> Noised:
        """A drawn step of the schedule."""
        drawn, fed = _noise_like(clean, noise, self._spec)
        steps = self._steps(len(clean), noise)
        share = self._signal_share[steps].to(clean.device)
        signal, blur = (_by_picture(part.sqrt().to(clean.dtype), clean) for part in (share, 1 - share))
        return Noised(
            noisy=signal * clean + blur * fed,
            target=signal * drawn - blur * clean if self._velocity else drawn,
            time=steps.to(clean.device),
            step=steps.to(clean.device),
            noise_to_signal=((1 - share) / share.clamp_min(1e-12)).sqrt(),
            weight=self._weight(share),
        )

    def _steps(self, count: int, noise: Generator) -> Tensor:
        if self._odds is None:
            return torch.randint(len(self._signal_share), (count,), generator=noise)
        return torch.multinomial(self._odds, count, replacement=True, generator=noise)

    def _weight(self, share: Tensor) -> Tensor | None:
        """Min-SNR: easy steps, with much signal, count less; the velocity's error already holds a factor of SNR + 1."""
        if self._spec.snr_gamma is None:
            return None
        ratio = share / (1 - share)
        limited = ratio.clamp(max=self._spec.snr_gamma)
        return limited / (ratio + 1) if self._velocity else limited / ratio


def step_odds(steps: int, spec: DiffusionSpec) -> Tensor | None:
    """How often each step is drawn against the others, where `timestep_bias_strategy` makes them differ."""
    if spec.timestep_bias_strategy == "none":
        return None
    count = int(spec.timestep_bias_portion * steps)
    first, last = {
        "earlier": (0, count),
        "later": (steps - count, steps),
        "range": (spec.timestep_bias_begin, spec.timestep_bias_end),
    }[spec.timestep_bias_strategy]
    odds = torch.ones(steps)
    odds[first:last] *= spec.timestep_bias_multiplier
    return odds


def custom_levels(spec: DiffusionSpec) -> Tensor | None:
    """The levels 0..1 that `flow_custom_timesteps` lists, as levels or as steps up to 1000."""
    if not spec.flow_custom_timesteps:
        return None
    listed = torch.tensor([float(part) for part in spec.flow_custom_timesteps.split(",")])
    return listed / STEPS if listed.max() > 1 else listed


def _noise_like(clean: Tensor, noise: Generator, spec: DiffusionSpec) -> tuple[Tensor, Tensor]:
    """The noise of the target, and the noise that is fed: the same unless `input_perturbation` sets them apart."""
    drawn = torch.randn(clean.shape, generator=noise)
    if spec.offset_noise and torch.rand(1, generator=noise).item() < spec.noise_offset_probability:
        channels = torch.randn(*clean.shape[:2], *[1] * (clean.dim() - 2), generator=noise)
        drawn += spec.noise_offset * channels
    fed = drawn
    if spec.input_perturbation > 0:
        fed = drawn + spec.input_perturbation * torch.randn(clean.shape, generator=noise)
    target = drawn.to(clean.device, clean.dtype)
    return target, target if fed is drawn else fed.to(clean.device, clean.dtype)


def _by_picture(values: Tensor, pictures: Tensor) -> Tensor:
    return values.view(-1, *[1] * (pictures.dim() - 1))


def _beta(count: int, alpha: float, beta: float, noise: Generator) -> Tensor:
    """Beta-distributed levels, as the share of one gamma draw in the sum of two: such draws take a generator."""
    draw: Any = torch._standard_gamma  # noqa: SLF001 # pyright: ignore[reportPrivateImportUsage] -- torch.distributions takes no generator
    one, other = (draw(torch.full((count,), shape), generator=noise) for shape in (alpha, beta))
    return one / (one + other)


def _auto_shift(sequence_length: int) -> float:
    """exp(mu), mu linear in the number of image tokens as the FLUX scheduler has it."""
    (low, mu_low), (high, mu_high) = _AUTO_SHIFT_LOW, _AUTO_SHIFT_HIGH
    return math.exp(mu_low + (mu_high - mu_low) * (sequence_length - low) / (high - low))
