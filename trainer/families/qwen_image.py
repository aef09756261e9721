# pyright: basic
"""Qwen-Image: Qwen2.5-VL text of any length, a video VAE (one frame), velocity n - x0 at time sigma."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from trainer.families.over_diffusers import TokenFamily, packed, unpacked
from trainer.families.protocol import Conditioning


class QwenImage(TokenFamily):
    """The Qwen-Image adapter. Latents are kept without the frame axis."""

    name = "qwen_image"
    pipeline_class: Any = QwenImagePipeline
    denoiser_class: Any = QwenImageTransformer2DModel
    vae_class: Any = AutoencoderKLQwenImage

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Qwen states [B, longest, d] and which of them are words."""
        with torch.no_grad():
            states, mask = encoders.encode_prompt(prompts, max_sequence_length=max_length)
        words = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        return {"prompt_embeds": states.cpu(), "prompt_embeds_mask": words.cpu()}

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Mean latents of the only frame, normalised channel by channel."""
        mean, deviation = _statistics(vae)
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype).unsqueeze(2)).latent_dist.mean
        return ((latents - mean) / deviation).squeeze(2).cpu()

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Undo the normalisation, then decode one frame."""
        mean, deviation = _statistics(vae)
        with torch.no_grad():
            frames = latents.to(vae.device, vae.dtype).unsqueeze(2) * deviation + mean
            return vae.decode(frames, return_dict=False)[0].squeeze(2)

    def vae_reduction(self, config: dict[str, Any]) -> int:
        """One halving per entry."""
        return 2 ** len(config["temperal_downsample"])

    def predict(
        self, denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Pack into tokens, predict, unpack."""
        batch, _, height, width = noisy.shape
        mask = conditioning["prompt_embeds_mask"]
        output = denoiser(
            hidden_states=packed(noisy),
            timestep=time,
            guidance=noisy.new_full((batch,), guidance) if denoiser.config.guidance_embeds else None,
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """Guidance goes by another name here."""
        arguments = super().pipeline_arguments(conditioning, negative, guidance)
        return {**arguments, "true_cfg_scale": arguments.pop("guidance_scale")}


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, [1, C, 1, 1, 1]."""
    mean, deviation = (
        torch.tensor(values, device=vae.device, dtype=vae.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


FAMILY = QwenImage()
