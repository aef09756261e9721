# pyright: basic
"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5, velocity n - x0 at time 1000 sigma."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning


class StableDiffusion3(DiffusersFamily):
    """The SD 3 adapter."""

    name = "sd3"
    pipeline_class: Any = StableDiffusion3Pipeline
    denoiser_class: Any = SD3Transformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """CLIP and T5 states [B, 77 + max_length, d] and both pooled CLIP vectors [B, p]."""
        with torch.no_grad():
            states, _, pooled, _ = encoders.encode_prompt(
                prompts, prompts, prompts, do_classifier_free_guidance=False, max_sequence_length=max_length
            )
        return {"prompt_embeds": states.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call."""
        return denoiser(
            hidden_states=noisy, timestep=time * 1000, encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"], return_dict=False,
        )[0]  # fmt: skip


FAMILY = StableDiffusion3()
