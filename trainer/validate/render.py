# pyright: basic
"""Validation pictures: the same prompts and seeds every time, so that only the model differs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.prepare import CachedTensors
from trainer.families.protocol import BaseModel, Family, RenderRequest
from trainer.publish.publisher import Publication, Publisher
from trainer.publish.upload import OutgoingFile, StoredFile
from trainer.report.events import Reporter
from trainer.train.trainee import Trainee


@dataclass(frozen=True)
class Sample:
    """One picture to draw: `name` is safe in a file name."""

    name: str
    prompt: str
    seed: int
    width: int
    height: int


def validation_prompts(spec: DiffusionSpec) -> dict[str, str]:
    """Prompts by id: the library and the single prompt; empty when validation is off."""
    if spec.validation_disable:
        return {}
    single = {"validation": spec.validation_prompt} if spec.validation_prompt else {}
    return {**(spec.user_prompt_library or {}), **single}


def planned_samples(spec: DiffusionSpec, side_multiple: int) -> list[Sample]:
    """Every picture of one validation, sizes rounded to what the model can draw."""
    first_seed = spec.validation_seed if spec.validation_seed is not None else spec.seed
    samples: list[Sample] = []
    for name, prompt in validation_prompts(spec).items():
        for width, height in _sizes(spec.validation_resolution, side_multiple):
            for index in range(spec.num_validation_images):
                safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60]
                samples.append(Sample(f"{safe}-{width}x{height}-{index}", prompt, first_seed + index, width, height))
    return samples


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """Draws all samples with the current adapter; before the first step that is the base model, unchanged."""

    trainee: Trainee
    spec: DiffusionSpec
    family: Family
    base: BaseModel
    vae: Any
    cached: CachedTensors
    samples: list[Sample]
    folder: Path
    reporter: Reporter
    publisher: Publisher

    def render(self) -> None:
        """Draw, write PNGs and queue them; nothing of this touches a source of chance of the training."""
        if not self.samples:
            return
        device = self.base.device
        self.reporter.phase("validating", f"step {self.trainee.step}")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.trainee.part.model.eval()
            for suffix, averaged in self._variants():
                self._draw_all(suffix, averaged=averaged)
        self.reporter.phase("training")

    def _variants(self) -> list[tuple[str, bool]]:
        if self.trainee.average is None or self.spec.ema_validation == "none" or self.trainee.step == 0:
            return [("", False)]
        return [("-ema", True)] if self.spec.ema_validation == "ema_only" else [("", False), ("-ema", True)]

    def _draw_all(self, suffix: str, *, averaged: bool) -> None:
        part, average = self.trainee.part, self.trainee.average
        live = part.tensors() if averaged else {}
        if averaged and average is not None:
            part.load(average.tensors)
        try:
            for sample in self.samples:
                self._draw(sample, suffix)
        finally:
            if averaged:
                part.load(live)

    def _draw(self, sample: Sample, suffix: str) -> None:
        request = RenderRequest(
            self.cached.conditioning([sample.prompt]), self.cached.conditioning([self.spec.validation_negative_prompt]),
            sample.seed, sample.width, sample.height,
            self.spec.validation_num_inference_steps, self.spec.validation_guidance,
        )  # fmt: skip
        mixed = self.base.dtype != torch.float32
        with torch.autocast(self.base.device.type, self.base.dtype, enabled=mixed):
            picture = self.family.render(self.trainee.part.model, self.vae, self.base, request)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{self.trainee.step:06d}-{sample.name}{suffix}.png"
        picture.save(path)
        self._publish(path, sample, self.trainee.step)

    def _publish(self, path: Path, sample: Sample, step: int) -> None:
        def report(stored: list[StoredFile]) -> None:
            reference = {k: v for k, v in stored[0].reference().items() if k != "name"}
            self.reporter.emit("sample", step=step, prompt=sample.prompt, seed=sample.seed, **reference)

        self.publisher.publish(Publication([OutgoingFile(path, f"samples/{path.name}", "image/png")], report))


def _sizes(text: str, side_multiple: int) -> list[tuple[int, int]]:
    """Sizes of a checked list such as `1024,1280x768`, rounded to what the model can draw."""
    sizes: list[tuple[int, int]] = []
    for part in text.split(","):
        sides = [int(side) for side in part.strip().split("x")]
        sizes.append((_rounded(sides[0], side_multiple), _rounded(sides[-1], side_multiple)))
    return sizes


def _rounded(length: int, multiple: int) -> int:
    return max(multiple, round(length / multiple) * multiple)
