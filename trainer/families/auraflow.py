# pyright: basic
"""AuraFlow: UMT5 text whose padding is zeros, velocity n - x0 at time sigma."""

from typing import Any

import torch
from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
from diffusers.pipelines.aura_flow.pipeline_aura_flow import AuraFlowPipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning


class AuraFlow(DiffusersFamily):
    """The AuraFlow adapter."""

    name = "auraflow"
    pipeline_class: Any = AuraFlowPipeline
    denoiser_class: Any = AuraFlowTransformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """UMT5 states [B, max_length, d]."""
        with torch.no_grad():
            states, _, _, _ = encoders.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=max_length
            )
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
        return denoiser(noisy, encoder_hidden_states=conditioning["prompt_embeds"], timestep=time, return_dict=False)[0]

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """The pipeline wants masks beside the states, though it does not use them."""
        masks = {f"{sign}prompt_attention_mask": torch.ones(1, 1) for sign in ("", "negative_")}
        return {**super().pipeline_arguments(conditioning, negative, guidance), **masks}


FAMILY = AuraFlow()
