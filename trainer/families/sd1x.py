# pyright: basic
"""Stable Diffusion 1.x: one CLIP encoder, a UNet that predicts noise (or velocity) at a step of 1,000."""

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from trainer.families.protocol import Conditioning
from trainer.families.scheduled import ScheduleFamily


class StableDiffusion1(ScheduleFamily):
    """The SD 1.x adapter."""

    name = "sd1x"
    part = "unet"
    pipeline_class: Any = StableDiffusionPipeline
    denoiser_class: Any = UNet2DConditionModel
    patch = 1

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:  # noqa: ARG002 -- CLIP's is fixed
        """CLIP states [B, 77, d]."""
        with torch.no_grad():
            states, _ = encoders.encode_prompt(prompts, encoders.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": states.cpu()}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call."""
        states = conditioning["prompt_embeds"]
        return denoiser(noisy, time, encoder_hidden_states=states, return_dict=False)[0]


FAMILY = StableDiffusion1()
