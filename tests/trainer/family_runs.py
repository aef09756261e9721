# pyright: basic
"""One tiny training per family, run once for all tests: base, attempt, held-out digits, the vendor's pipeline."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attempts import Attempt, AttemptStarter
from tiny.pipelines import build
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from shared.contracts.training.families import FAMILIES
from trainer.data.buckets import Placement
from trainer.digits import RED, SIDE, YELLOW, caption_of, ink, tinted
from trainer.families.protocol import BaseModel, Conditioning, RenderRequest, collated
from trainer.families.registry import load_family
from trainer.train.noising import noising_for
from trainer.train.objective import Batch, training_loss

PROMPT = caption_of(7)
TEXT_LENGTHS = {"lumina2": 64}
LESSONS: dict[str, dict[str, Any]] = {
    "lumina2": {"max_train_steps": 100, "learning_rate": 0.005, "caption_dropout_probability": 0},
}
"""Where the usual lesson lowers the loss, and what is drawn comes nearer to the data only later."""
_LENGTH = {"max_sequence_length": 32}
_NO_BINS = {"use_resolution_binning": False}
CALLS: dict[str, dict[str, Any]] = {
    "sd1x": {},
    "sdxl": {},
    "pixart_sigma": {**_LENGTH, **_NO_BINS},
    "sana": {**_LENGTH, **_NO_BINS},
    "lumina2": {"max_sequence_length": 64},
    "flux2": {**_LENGTH, "text_encoder_out_layers": (1, 2, 3)},
}
"""What a user of the tiny pipeline passes besides prompt, size, steps and guidance; `_LENGTH` where nothing is said."""


@dataclass
class FamilyRun:
    """A family's tiny base, and a LoRA trained on it by our own loop, started when first asked for."""

    name: str
    folder: Path
    start: AttemptStarter

    @cached_property
    def base(self) -> Path:
        return build(self.name, self.folder / "base")

    @cached_property
    def family(self) -> Any:  # more than `Family` says: the vendor's classes too
        return load_family(self.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        return {
            "model_family": self.name, "pretrained_model_name_or_path": str(self.base), "max_train_steps": 50,
            "train_batch_size": 8, "resolution": SIDE, "tokenizer_max_length": TEXT_LENGTHS.get(self.name, 32),
            "peft_lora_target_modules": ["all-linear"], "lora_rank": 16, "lora_dropout": 0, "learning_rate": 0.01,
            "lr_scheduler": "constant", "max_grad_norm": 1.0, "grad_clip_method": "norm", "checkpointing_steps": 1000,
            "validation_disable": False, "disable_benchmark": False, "validation_prompt": PROMPT,
            "validation_negative_prompt": "",  # what the vendors' pipelines take when nothing is said
            "validation_resolution": str(SIDE),
            "validation_num_inference_steps": 3, "validation_guidance": 3.0, "validation_seed": 5,
            "flow_schedule_shift": 1.0 if FAMILIES[self.name].flow else None,
            **LESSONS.get(self.name, {}),
        }  # fmt: skip

    @cached_property
    def lora(self) -> Attempt:
        """A finished attempt with the LoRA in its output folder."""
        attempt = self.start(f"{self.name}-lora", **self.config)
        assert attempt.run() == 0, attempt.data("failed")
        return attempt

    @cached_property
    def spec(self) -> DiffusionSpec:
        return check_diffusion({**self.config, "model_type": "lora"})

    @cached_property
    def model(self) -> BaseModel:
        return BaseModel(self.base, torch.device("cpu"), torch.float32)

    @cached_property
    def vae(self) -> Any:
        return self.family.load_vae(self.model)

    @cached_property
    def held_out(self) -> Batch:
        """Sixty-four tinted digits that no training has seen, with their captions."""
        coverage, labels = ink()
        pixels = np.ascontiguousarray((tinted(coverage[200:264], RED, YELLOW) * 2 - 1).transpose(0, 3, 1, 2))
        texts = self.encode([caption_of(digit) for digit in range(10)])
        return Batch(
            self.family.encode_image(self.vae, torch.from_numpy(pixels)),
            collated([texts[label] for label in labels[200:264]]),
        )

    def encode(self, prompts: list[str]) -> list[Conditioning]:
        """Each prompt alone, with what the family adds for a picture that was not cropped."""
        encoders, length = self.family.load_text_encoders(self.model), self.spec.tokenizer_max_length or 32
        size = (SIDE, SIDE)
        added = self.family.conditioning_of(Placement(size=size, resized=size, offset=(0, 0)))
        encoded = (self.family.encode_text(encoders, [prompt], length) for prompt in prompts)
        return [{**{name: tensor[0] for name, tensor in text.items()}, **added} for text in encoded]

    def held_out_loss(self, denoiser: Any) -> float:
        """The loss on the held-out digits with the same 64 draws of noise every time."""
        noising, noise = noising_for(self.family, self.model, self.spec), torch.Generator().manual_seed(7)
        with torch.no_grad():
            return training_loss(self.family, denoiser, self.held_out, noising, noise, self.spec).item()

    def vendors_pipeline(self) -> Any:
        """The base as its users load it."""
        pipeline = self.family.pipeline_class.from_pretrained(self.base, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(requires_grad=False)
        return pipeline

    def denoiser_of(self, pipeline: Any) -> Any:
        return getattr(pipeline, self.family.part)

    def call(self, pipeline: Any, prompts: list[str], *, steps: int, guidance: float, output: str = "pt") -> Tensor:
        """What a user of the pipeline draws with seed 5, [N, 3, H, W] in 0..1 or what it gives as `latent`."""
        key = "true_cfg_scale" if self.name == "qwen_image" else "guidance_scale"
        negative = {"negative_prompt": [""] * len(prompts)} if self.name == "qwen_image" else {}
        with torch.no_grad():
            return pipeline(
                prompt=list(prompts),  # a copy: Z-Image's pipeline writes into it
                width=SIDE, height=SIDE, num_inference_steps=steps, output_type=output,
                generator=torch.Generator().manual_seed(5), **{key: guidance}, **negative,
                **CALLS.get(self.name, _LENGTH),
            ).images  # fmt: skip

    def distance_to_data(self, pipeline: Any) -> float:
        """Between latents drawn for eight digits and the held-out ones, in mean and deviation of every number."""
        drawn = self.call(pipeline, [caption_of(digit) for digit in range(8)], steps=4, guidance=1.0, output="latent")
        request = RenderRequest({}, {}, seed=5, width=SIDE, height=SIDE, steps=4, guidance=1.0)
        latents, data = self.family.drawn_latents(pipeline, drawn, request), self.held_out.latents
        errors = (latents.mean(0) - data.mean(0)).square() + (latents.std(0) - data.std(0)).square()
        return errors.mean().sqrt().item()
