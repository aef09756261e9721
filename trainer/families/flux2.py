# pyright: basic
"""FLUX.2 klein: text from three depths of Qwen3, patchified latents normalised by the VAE's statistics."""

from functools import lru_cache
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning, RenderRequest

_pipeline: Any = Flux2KleinPipeline


class Flux2(DiffusersFamily):
    """The FLUX.2 klein adapter. A latent pixel is a token: patches were cut before normalising."""

    name = "flux2"
    pipeline_class: Any = Flux2KleinPipeline
    denoiser_class: Any = Flux2Transformer2DModel
    vae_class: Any = AutoencoderKLFlux2
    attention_endings = [*DiffusersFamily.attention_endings, "to_qkv_mlp_proj", "attn.to_out"]

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """States [B, max_length, 3d] at a quarter, half and three quarters of the encoder's depth."""
        depth = encoders.text_encoder.config.num_hidden_layers
        with torch.no_grad():
            states, _ = encoders.encode_prompt(
                prompts, max_sequence_length=max_length,
                text_encoder_out_layers=(depth // 4, depth // 2, 3 * depth // 4),
            )  # fmt: skip
        return {"prompt_embeds": states.cpu()}

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Mean latents in 2x2 patches, normalised by the batch norm's running statistics."""
        mean, deviation = _statistics(vae)
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
            return ((_pipeline._patchify_latents(latents) - mean) / deviation).cpu()  # noqa: SLF001 -- its only home

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Undo the normalisation and the patches, then decode."""
        mean, deviation = _statistics(vae)
        with torch.no_grad():
            patches = latents.to(vae.device, vae.dtype) * deviation + mean
            return vae.decode(_pipeline._unpatchify_latents(patches), return_dict=False)[0]  # noqa: SLF001

    def sequence_length(self, latents: Tensor) -> int:
        """One token per latent pixel."""
        return latents.shape[-2] * latents.shape[-1]

    def predict(
        self, denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Latent pixels as a row of tokens, and back."""
        batch, _, height, width = noisy.shape
        states = conditioning["prompt_embeds"]
        output = denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=time,
            guidance=noisy.new_full((batch,), guidance) if denoiser.config.guidance_embeds else None,
            encoder_hidden_states=states,
            txt_ids=_positions(1, 1, states.shape[1], noisy.device),
            img_ids=_positions(height, width, 1, noisy.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))

    def drawn_latents(self, pipeline: Any, drawn: Tensor, request: RenderRequest) -> Tensor:  # noqa: ARG002 -- has no size to mend
        """This pipeline returns what the VAE decodes: normalise it again."""
        mean, deviation = _statistics(pipeline.vae)
        return (pipeline._patchify_latents(drawn.to(mean)) - mean) / deviation  # noqa: SLF001 -- its only home


@lru_cache(maxsize=64)
def _positions(rows: int, columns: int, words: int, device: torch.device) -> Tensor:
    """Position ids [rows*columns*words, 4]: (0, row, column, word). Made once per size; never change them."""
    axes = [torch.arange(count) for count in (1, rows, columns, words)]
    return torch.cartesian_prod(*axes).to(device)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch channel, [1, C, 1, 1]."""
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1), variance.sqrt()


FAMILY = Flux2()
