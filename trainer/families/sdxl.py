# pyright: basic
"""SDXL: two CLIP encoders and a UNet that is also told each picture's size, crop and target size."""

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from trainer.data.buckets import Placement
from trainer.families.protocol import Conditioning
from trainer.families.scheduled import ScheduleFamily


class StableDiffusionXl(ScheduleFamily):
    """The SDXL adapter."""

    name = "sdxl"
    part = "unet"
    pipeline_class: Any = StableDiffusionXLPipeline
    denoiser_class: Any = UNet2DConditionModel
    patch = 1

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:  # noqa: ARG002 -- CLIP's is fixed
        """Both encoders' states [B, 77, d] and the second one's pooled vector [B, p].

        The empty prompt becomes zeros where the base's pipeline makes it so, as drawing does.
        """
        with torch.no_grad():
            states, _, pooled, _ = encoders.encode_prompt(prompts, do_classifier_free_guidance=False)
        if encoders.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not prompt for prompt in prompts], device=states.device)
            states, pooled = states.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"prompt_embeds": states.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def conditioning_of(self, placement: Placement) -> Conditioning:
        """Six time ids: (height, width) before the crop, the crop's (top, left), (height, width) after it."""
        (width, height), (full_width, full_height) = placement.size, placement.resized
        left, top = placement.offset
        return {"time_ids": torch.tensor([full_height, full_width, top, left, height, width], dtype=torch.float32)}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call with the additions."""
        additions = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        return denoiser(
            noisy, time, encoder_hidden_states=conditioning["prompt_embeds"], added_cond_kwargs=additions,
            return_dict=False,
        )[0]  # fmt: skip


FAMILY = StableDiffusionXl()
