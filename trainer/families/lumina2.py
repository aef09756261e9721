# pyright: basic
"""Lumina-Image 2.0: Gemma 2 text behind a system prompt; the network gives x0 - n at time 1 - sigma."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning


class Lumina2(DiffusersFamily):
    """The Lumina 2 adapter."""

    name = "lumina2"
    pipeline_class: Any = Lumina2Pipeline
    denoiser_class: Any = Lumina2Transformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Gemma states [B, max_length, d] and which of them are words; as in drawing, "" has no system prompt."""
        encoded = [self._encode_one(encoders, prompt, max_length) for prompt in prompts]
        states, masks = (torch.cat(tensors).cpu() for tensors in zip(*encoded, strict=True))
        return {"prompt_embeds": states, "prompt_attention_mask": masks}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call with the clock and the sign turned."""
        return -denoiser(
            hidden_states=noisy, timestep=1 - time, encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["prompt_attention_mask"], return_dict=False,
        )[0]  # fmt: skip

    def _encode_one(self, encoders: Any, prompt: str, max_length: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if not prompt:
                return encoders._get_gemma_prompt_embeds("", max_sequence_length=max_length)  # noqa: SLF001 -- its only home
            states, mask, _, _ = encoders.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=max_length
            )
        return states, mask


FAMILY = Lumina2()
