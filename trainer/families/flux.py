# pyright: basic
"""FLUX.1: CLIP and T5 text, a 16-channel VAE, 2x2 latent patches as tokens, velocity n - x0 at time sigma."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.families.over_diffusers import TokenFamily, packed, patch_positions, unpacked
from trainer.families.protocol import Conditioning

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONTEXT = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
_CONTEXT_FEED_FORWARD = ["ff_context.net.0.proj", "ff_context.net.2"]
_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2", *_CONTEXT_FEED_FORWARD, "proj_mlp", "proj_out"]
_TARGETS: dict[str, list[str]] = {
    "all": [*_ATTENTION, *_CONTEXT],
    "all+ffs": [*_ATTENTION, *_CONTEXT, *_FEED_FORWARD],
    "all+ffs+embedder": [*_ATTENTION, *_CONTEXT, *_FEED_FORWARD, "x_embedder"],
    "context": _CONTEXT,
    "context+ffs": [*_CONTEXT, *_CONTEXT_FEED_FORWARD],
    "ai-toolkit": [*_ATTENTION, *_CONTEXT, *_FEED_FORWARD, "norm.linear", "norm1.linear", "norm1_context.linear"],
    "tiny": ["single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"],
    "nano": ["single_transformer_blocks.7.proj_out"],
}


class Flux(TokenFamily):
    """The FLUX.1 adapter."""

    name = "flux"
    pipeline_class: Any = FluxPipeline
    denoiser_class: Any = FluxTransformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """T5 states [B, max_length, d] and the pooled CLIP vector [B, p]."""
        with torch.no_grad():
            states, pooled, _ = encoders.encode_prompt(prompts, prompts, max_sequence_length=max_length)
        return {"prompt_embeds": states.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def predict(
        self, denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Pack into tokens, predict, unpack."""
        batch, _, height, width = noisy.shape
        states = conditioning["prompt_embeds"]
        scale = torch.full((batch,), guidance, device=noisy.device, dtype=noisy.dtype)
        output = denoiser(
            hidden_states=packed(noisy),
            timestep=time,
            guidance=scale if denoiser.config.guidance_embeds else None,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=patch_positions(height // 2, width // 2, noisy.device, noisy.dtype),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def lora_targets(self, denoiser: Any, spec: DiffusionSpec) -> list[str]:
        """`peft_lora_target_modules` wins over `flux_lora_target`."""
        if spec.peft_lora_target_modules:
            return super().lora_targets(denoiser, spec)
        return _TARGETS[spec.flux_lora_target]

    def pipeline_arguments(
        self,
        conditioning: Conditioning,
        negative: Conditioning,  # noqa: ARG002 -- guidance is distilled
        guidance: float,
    ) -> dict[str, Any]:
        """The distilled guidance needs no negative prompt."""
        return {**conditioning, "guidance_scale": guidance}


FAMILY = Flux()
