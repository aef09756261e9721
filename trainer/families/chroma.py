# pyright: basic
"""Chroma: FLUX.1's layout with T5 text alone and masked padding, velocity n - x0 at time sigma."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.pipelines.chroma.pipeline_chroma import ChromaPipeline
from torch import Tensor

from trainer.families.over_diffusers import TokenFamily, packed, patch_positions, unpacked
from trainer.families.protocol import Conditioning


class Chroma(TokenFamily):
    """The Chroma adapter."""

    name = "chroma"
    pipeline_class: Any = ChromaPipeline
    denoiser_class: Any = ChromaTransformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """T5 states [B, max_length, d] and the pipeline's mask of words and one padding."""
        with torch.no_grad():
            states, _, mask, *_ = encoders.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=max_length
            )
        return {"prompt_embeds": states.cpu(), "prompt_attention_mask": mask.cpu()}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """Pack into tokens, predict with the mask in the number type in which the pipeline gives it, unpack."""
        _, _, height, width = noisy.shape
        tokens, states = packed(noisy), conditioning["prompt_embeds"]
        mask = torch.cat([conditioning["prompt_attention_mask"], tokens.new_ones(tokens.shape[:2])], dim=1)
        output = denoiser(
            hidden_states=tokens,
            timestep=time,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=patch_positions(height // 2, width // 2, noisy.device, noisy.dtype),
            attention_mask=mask,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)


FAMILY = Chroma()
