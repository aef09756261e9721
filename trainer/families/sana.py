# pyright: basic
"""Sana: a deep-compression VAE, Gemma 2 text behind an instruction, velocity n - x0 at scaled time 1000 sigma."""

import inspect
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning

_INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(DiffusersFamily):
    """The Sana adapter."""

    name = "sana"
    pipeline_class: Any = SanaPipeline
    denoiser_class: Any = SanaTransformer2DModel
    vae_class: Any = AutoencoderDC
    patch = 1

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Gemma states [B, max_length, d] and which of them are words; "" has no instruction, as in drawing."""
        encoded = [self._encode_one(encoders, prompt, max_length) for prompt in prompts]
        states, masks = (torch.cat(tensors).cpu() for tensors in zip(*encoded, strict=True))
        return {"prompt_embeds": states, "prompt_attention_mask": masks}

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """This VAE is no distribution: the latents themselves, scaled."""
        with torch.no_grad():
            return (vae.encode(pixels.to(vae.device, vae.dtype)).latent * vae.config.scaling_factor).cpu()

    def vae_reduction(self, config: dict[str, Any]) -> int:
        """Its blocks go by another name."""
        return 2 ** (len(config["encoder_block_out_channels"]) - 1)

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call; a learned variance, where the base has one, is left out."""
        output = denoiser(
            noisy, encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            timestep=time * 1000 * denoiser.config.timestep_scale, return_dict=False,
        )[0]  # fmt: skip
        return output[:, : noisy.shape[1]]

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """The size is drawn as asked, not the nearest of a table, and no negative text beside the embedded one."""
        arguments = super().pipeline_arguments(conditioning, negative, guidance)
        return {**arguments, "negative_prompt": None, "use_resolution_binning": False}

    def _encode_one(self, encoders: Any, prompt: str, max_length: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states, mask, _, _ = encoders.encode_prompt(
                [prompt], do_classifier_free_guidance=False, max_sequence_length=max_length,
                complex_human_instruction=_INSTRUCTION if prompt else None,
            )  # fmt: skip
        return states, mask


FAMILY = Sana()
