# pyright: basic
"""`python -m tests.bench.trainer.child.evaluate FAMILY MODEL HELD_OUT PROMPT LORA…`: a loss for each, as JSON.

Both sides' LoRA files are loaded by the vendor's own pipeline and judged on the same held-out pictures, the same noise
and the same times: eight, spread evenly. `-` stands for the base model without any; an empty PROMPT for each
picture's own caption.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

_TIMES = 8
_PIPELINES: dict[str, Any] = {"flux": FluxPipeline, "sd1x": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def _latents(pipeline: Any, pixels: torch.Tensor) -> torch.Tensor:
    mean = pipeline.vae.encode(pixels).latent_dist.mean
    return (mean - (pipeline.vae.config.shift_factor or 0.0)) * pipeline.vae.config.scaling_factor


def _flux_loss(
    pipeline: Any, clean: torch.Tensor, noise: torch.Tensor, sigma: float, captions: list[str]
) -> torch.Tensor:
    states, pooled, text_ids = pipeline.encode_prompt(captions, captions, max_sequence_length=16)
    count, channels, height, width = clean.shape
    tokens = FluxPipeline._pack_latents(torch.lerp(clean, noise, sigma), count, channels, height, width)  # noqa: SLF001
    predicted = pipeline.transformer(
        hidden_states=tokens, timestep=torch.full((count,), sigma), encoder_hidden_states=states,
        pooled_projections=pooled, txt_ids=text_ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32),  # noqa: SLF001
        return_dict=False,
    )[0]  # fmt: skip
    target = FluxPipeline._pack_latents(noise - clean, count, channels, height, width)  # noqa: SLF001
    return (predicted - target).square().mean()


def _unet_loss(
    pipeline: Any, clean: torch.Tensor, noise: torch.Tensor, sigma: float, captions: list[str]
) -> torch.Tensor:
    time = torch.full((len(clean),), int(sigma * 1000))
    schedule: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = schedule.add_noise(clean, noise, time)
    added: dict[str, torch.Tensor] | None = None
    encode: Any = pipeline.encode_prompt  # its annotations know one prompt
    if isinstance(pipeline, StableDiffusionXLPipeline):
        states, _, pooled, _ = encode(captions, device="cpu", do_classifier_free_guidance=False)
        side = clean.shape[-1] * pipeline.vae_scale_factor
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(clean)).float()}
    else:
        states, _ = encode(captions, "cpu", 1, False)
    predicted = pipeline.unet(noisy, time, states, added_cond_kwargs=added, return_dict=False)[0]
    return (predicted - noise).square().mean()


@torch.no_grad()
def loss_of(family: str, model: str, held_out: dict[str, Any], lora: str) -> float:
    """The mean squared error of the prediction over all held-out pictures and times."""
    pipeline = _PIPELINES[family].from_pretrained(model, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if lora != "-":
        pipeline.load_lora_weights(Path(lora).parent, weight_name=Path(lora).name)
    clean = _latents(pipeline, held_out["pixels"])
    chance = torch.Generator().manual_seed(1)
    measure = _flux_loss if family == "flux" else _unet_loss
    losses = [
        measure(
            pipeline, clean, torch.randn(clean.shape, generator=chance), (index + 0.5) / _TIMES, held_out["captions"]
        )
        for index in range(_TIMES)
    ]
    return float(torch.stack(losses).mean())


def main() -> None:
    """Print the losses."""
    family, model, held_out, prompt, *loras = sys.argv[1:]
    torch.set_num_threads(1)
    pictures = torch.load(held_out)
    if prompt:
        pictures["captions"] = [prompt] * len(pictures["captions"])
    print(json.dumps([loss_of(family, model, pictures, lora) for lora in loras]))


if __name__ == "__main__":
    main()
