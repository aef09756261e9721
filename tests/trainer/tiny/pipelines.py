# pyright: basic
"""Whole pipelines of the twelve families, small enough for one CPU thread; denoisers are random and learn quickly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from tiny import autoencoders, text_encoders, tokenizers
from trainer.fixtures.build_tiny_flux import clip_tokenizer, t5_tokenizer

_lib: Any = diffusers
_SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_FLUX_VAE = {"scaling": 0.3611, "shift": 0.1159, "quant": False}
_HEADS = {"attention_head_dim": 16, "num_attention_heads": 4}


def build(name: str, folder: Path) -> Path:
    """Make the family's tiny model and store it; the same weights every time."""
    pipeline = RECIPES[name]()
    pipeline.save_pretrained(folder)
    return folder


def _sd1x() -> Any:
    tokenizer = clip_tokenizer()
    torch.manual_seed(0)
    unet = _lib.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = _lib.DDIMScheduler(**_SD_NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return _lib.StableDiffusionPipeline(
        vae=autoencoders.kl(4, scaling=0.18215), text_encoder=text_encoders.clip(tokenizer), tokenizer=tokenizer,
        unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> Any:
    tokenizer = clip_tokenizer()
    torch.manual_seed(0)
    unet = _lib.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=64,
        attention_head_dim=(4, 8), use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return _lib.StableDiffusionXLPipeline(
        vae=autoencoders.kl(4, scaling=0.13025), unet=unet, tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder=text_encoders.clip(tokenizer), text_encoder_2=text_encoders.clip(tokenizer, projected=True),
        scheduler=_lib.EulerDiscreteScheduler(**_SD_NOISE, steps_offset=1, timestep_spacing="leading"),
    )  # fmt: skip


def _sd3() -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.SD3Transformer2DModel(
        sample_size=16, num_layers=2, **_HEADS, caption_projection_dim=64, joint_attention_dim=64,
        pooled_projection_dim=64, pos_embed_max_size=32,
    )  # fmt: skip
    return _lib.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_lib.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoders.kl(16, scaling=1.5305, shift=0.0609, quant=False), tokenizer=clip, tokenizer_2=clip,
        text_encoder=text_encoders.clip(clip, projected=True), text_encoder_2=text_encoders.clip(clip, projected=True),
        text_encoder_3=text_encoders.t5(t5, 64), tokenizer_3=t5,
    )  # fmt: skip


def _flux() -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, **_HEADS, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    return _lib.FluxPipeline(
        transformer=transformer, vae=autoencoders.kl(16, **_FLUX_VAE), tokenizer=clip, tokenizer_2=t5,
        text_encoder=text_encoders.clip(clip), text_encoder_2=text_encoders.t5(t5),
        scheduler=_lib.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )  # fmt: skip


def _flux2() -> Any:
    tokenizer = tokenizers.qwen_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.Flux2Transformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, **_HEADS, joint_attention_dim=96,
        timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return _lib.Flux2KleinPipeline(
        transformer=transformer, vae=autoencoders.kl_flux2(), tokenizer=tokenizer,
        text_encoder=text_encoders.qwen3(tokenizer, layers=4, causal=True),
        scheduler=_lib.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def _pixart_sigma() -> Any:
    tokenizer = t5_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, **_HEADS, caption_channels=32, cross_attention_dim=64,
        use_additional_conditions=False,
    )  # fmt: skip
    return _lib.PixArtSigmaPipeline(
        transformer=transformer, vae=autoencoders.kl(4, scaling=0.13025), tokenizer=tokenizer,
        text_encoder=text_encoders.t5(tokenizer), scheduler=_lib.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def _auraflow() -> Any:
    tokenizer = t5_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, **_HEADS, caption_projection_dim=64,
        joint_attention_dim=32, pos_embed_max_size=64,
    )  # fmt: skip
    return _lib.AuraFlowPipeline(
        transformer=transformer, vae=autoencoders.kl(4, scaling=0.13025), tokenizer=tokenizer,
        text_encoder=text_encoders.umt5(tokenizer), scheduler=_lib.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def _chroma() -> Any:
    tokenizer = t5_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.ChromaTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, **_HEADS, joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    return _lib.ChromaPipeline(
        transformer=transformer, vae=autoencoders.kl(16, **_FLUX_VAE), tokenizer=tokenizer,
        text_encoder=text_encoders.t5(tokenizer), scheduler=_lib.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def _lumina2() -> Any:
    tokenizer = tokenizers.gemma_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.Lumina2Transformer2DModel(
        sample_size=8, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=(8, 4, 4), axes_lens=(300, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    # Its pipeline takes a reduction of 8 for granted, hence four blocks.
    return _lib.Lumina2Pipeline(
        transformer=transformer, vae=autoencoders.kl(16, **_FLUX_VAE, blocks=4), tokenizer=tokenizer,
        text_encoder=text_encoders.gemma2(tokenizer), scheduler=_lib.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip


def _sana() -> Any:
    tokenizer = tokenizers.gemma_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_layers=2, **_HEADS, num_cross_attention_heads=4,
        cross_attention_head_dim=16, cross_attention_dim=64, caption_channels=32, sample_size=8,
    )  # fmt: skip
    return _lib.SanaPipeline(
        transformer=transformer, vae=autoencoders.dc(), tokenizer=tokenizer,
        text_encoder=text_encoders.gemma2(tokenizer), scheduler=_lib.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def _z_image() -> Any:
    tokenizer = tokenizers.qwen_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.ZImageTransformer2DModel(
        dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=32, axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # created empty
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    return _lib.ZImagePipeline(
        transformer=transformer, vae=autoencoders.kl(16, **_FLUX_VAE), tokenizer=tokenizer,
        text_encoder=text_encoders.qwen3(tokenizer, layers=2, causal=False),
        scheduler=_lib.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def _qwen_image() -> Any:
    tokenizer = tokenizers.qwen_tokenizer()
    torch.manual_seed(0)
    transformer = _lib.QwenImageTransformer2DModel(
        num_layers=2, **_HEADS, joint_attention_dim=32, axes_dims_rope=(4, 6, 6)
    )
    scheduler = _lib.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    return _lib.QwenImagePipeline(
        transformer=transformer, vae=autoencoders.kl_qwen(), tokenizer=tokenizer,
        text_encoder=text_encoders.qwen_vl(tokenizer), scheduler=scheduler,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Any]] = {
    "sd1x": _sd1x, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "flux2": _flux2, "pixart_sigma": _pixart_sigma,
    "auraflow": _auraflow, "chroma": _chroma, "lumina2": _lumina2, "sana": _sana, "z_image": _z_image,
    "qwen_image": _qwen_image,
}  # fmt: skip
