# pyright: basic
"""Small models of the real architectures, made once for a run.

VAE, tokenizer and first text encoder are the FLUX fixture's.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FIXTURE = Path(__file__).parents[4] / "trainer" / "fixtures" / "tiny-flux-digits"
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_TEXT_WIDTH = 32


def build_models(folder: Path) -> None:
    """`sd1x` and `sdxl` as complete diffusers folders."""
    _stable_diffusion().save_pretrained(folder / "sd1x")
    _stable_diffusion_xl().save_pretrained(folder / "sdxl")


def _vae() -> Any:
    vae: Any = AutoencoderKL.from_pretrained(FIXTURE, subfolder="vae", dtype=torch.float32)
    vae.register_to_config(shift_factor=None)  # these families have none
    return vae


def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(FIXTURE, subfolder="tokenizer")


def _unet(**options: Any) -> Any:
    build: Any = UNet2DConditionModel
    torch.manual_seed(0)
    return build(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        norm_num_groups=8, **options,
    )  # fmt: skip


def _stable_diffusion() -> Any:
    text: Any = CLIPTextModel.from_pretrained(FIXTURE, subfolder="text_encoder", dtype=torch.float32)
    unet = _unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text.config.hidden_size, attention_head_dim=4,
    )  # fmt: skip
    build: Any = StableDiffusionPipeline
    return build(
        vae=_vae(), text_encoder=text, tokenizer=_tokenizer(), unet=unet, scheduler=DDPMScheduler(**_SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _stable_diffusion_xl() -> Any:
    text: Any = CLIPTextModel.from_pretrained(FIXTURE, subfolder="text_encoder", dtype=torch.float32)
    torch.manual_seed(0)
    settings = {**text.config.to_dict(), "projection_dim": _TEXT_WIDTH}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**settings)).eval()
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 8), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + _TEXT_WIDTH, cross_attention_dim=2 * text.config.hidden_size,
    )  # fmt: skip
    build: Any = StableDiffusionXLPipeline
    return build(
        vae=_vae(), text_encoder=text, text_encoder_2=second, tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        unet=unet, scheduler=DDPMScheduler(**_SCHEDULE),
    )  # fmt: skip
