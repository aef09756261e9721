# pyright: basic
"""VAEs of the real classes with random weights, made to give digits latents of mean 0 and deviation 1 once scaled."""

from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from torch import Tensor

from trainer.digits import RED, YELLOW, ink, tinted

# The annotations of these constructors are narrower than what they take.
_kl: Any = AutoencoderKL
_kl_flux2: Any = AutoencoderKLFlux2
_dc: Any = AutoencoderDC
_kl_qwen: Any = AutoencoderKLQwenImage


@cache
def digit_pixels() -> Tensor:
    """Sixty-four tinted digits [64, 3, 32, 32] in -1..1."""
    pixels = tinted(ink()[0][:64], RED, YELLOW) * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def kl(channels: int, *, scaling: float, shift: float | None = None, quant: bool = True, blocks: int = 3) -> Any:
    """AutoencoderKL with the family's own scaling and shift."""
    torch.manual_seed(0)
    vae = _kl(
        latent_channels=channels, block_out_channels=(8, *(16,) * (blocks - 1)), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        sample_size=32, scaling_factor=scaling, shift_factor=shift, use_quant_conv=quant, use_post_quant_conv=quant,
        mid_block_add_attention=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        latents = vae.encode(digit_pixels()).latent_dist.mean
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        last = vae.quant_conv if quant else vae.encoder.conv_out
        last.weight[:channels] /= (deviation * scaling)[:, None, None, None]
        last.bias[:channels] = (last.bias[:channels] - mean) / (deviation * scaling) + (shift or 0.0)
    return vae


def kl_flux2() -> Any:
    """FLUX.2's, its batch norm filled with the statistics of digits' patches."""
    torch.manual_seed(0)
    vae = _kl_flux2(
        sample_size=32, latent_channels=16, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        latents = vae.encode(digit_pixels()).latent_dist.mean
        patches = torch.nn.functional.pixel_unshuffle(latents, 2)
        vae.bn.running_mean.copy_(patches.mean((0, 2, 3)))
        vae.bn.running_var.copy_(patches.var((0, 2, 3)))
    return vae


def dc() -> Any:
    """Sana's deep-compression autoencoder, which only scales."""
    torch.manual_seed(0)
    blocks, widths = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 16, 16)
    vae = _dc(
        latent_channels=8, attention_head_dim=4, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).eval()  # fmt: skip
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / vae.encode(digit_pixels()).latent.std().item())
    return vae


def kl_qwen() -> Any:
    """Qwen-Image's video VAE, with the statistics of each channel of digits in its config."""
    torch.manual_seed(0)
    vae = _kl_qwen(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
    ).eval()  # fmt: skip
    with torch.no_grad():
        latents = vae.encode(digit_pixels().unsqueeze(2)).latent_dist.mean
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    return vae
