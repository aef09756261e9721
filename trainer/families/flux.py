# pyright: basic
"""FLUX.1: CLIP and T5 text, a 16-channel VAE, 2x2 latent patches as tokens, velocity n - x0 at time sigma."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.families.protocol import BaseModel, Conditioning, RenderRequest

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


class Flux:
    """The FLUX.1 adapter; see `trainer.families.protocol.Family` for what each method promises."""

    name = "flux"
    objective: Literal["flow"] = "flow"
    pixel_multiple = 16

    def load_text_encoders(self, base: BaseModel) -> Any:
        """A pipeline that holds tokenizers and text encoders only."""
        pipeline: Any = FluxPipeline.from_pretrained(
            base.folder, transformer=None, vae=None, dtype=base.dtype, local_files_only=True, variant=base.variant
        )
        return pipeline.to(base.device)

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """T5 states [B, max_length, d] and the pooled CLIP vector [B, p]."""
        with torch.no_grad():
            states, pooled, _ = encoders.encode_prompt(prompts, prompts, max_sequence_length=max_length)
        return {"prompt_embeds": states.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def load_vae(self, base: BaseModel) -> Any:
        """The VAE in float32 on the training device."""
        vae: Any = AutoencoderKL.from_pretrained(
            base.folder, subfolder="vae", dtype=torch.float32, local_files_only=True, variant=base.variant
        )
        return vae.to(base.device).requires_grad_(False).eval()

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Mean latents, shifted and scaled to unit variance."""
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).cpu()

    def load_denoiser(self, base: BaseModel) -> Any:
        """The transformer, frozen."""
        denoiser: Any = FluxTransformer2DModel.from_pretrained(
            base.folder, subfolder="transformer", dtype=base.dtype, local_files_only=True, variant=base.variant
        )
        return denoiser.to(base.device).requires_grad_(False).eval()

    def side_multiple(self, base: BaseModel) -> int:
        """VAE reduction times the 2x2 patch."""
        config: Any = AutoencoderKL.load_config(base.folder, subfolder="vae", local_files_only=True)
        return 2 ** (len(config["block_out_channels"]) - 1) * 2

    def sequence_length(self, latents: Tensor) -> int:
        """One token per 2x2 patch."""
        return latents.shape[-2] * latents.shape[-1] // 4

    def predict(
        self, denoiser: Any, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Pack into tokens, predict, unpack."""
        batch, channels, height, width = noisy.shape
        tokens = FluxPipeline._pack_latents(noisy, batch, channels, height, width)  # noqa: SLF001 -- its only home
        states = conditioning["prompt_embeds"]
        scale = torch.full((batch,), guidance, device=noisy.device, dtype=noisy.dtype)
        output = denoiser(
            hidden_states=tokens,
            timestep=sigma,
            guidance=scale if denoiser.config.guidance_embeds else None,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=_patch_positions(height // 2, width // 2, noisy),
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(output, height, width, 1)  # noqa: SLF001 -- its only home

    def lora_targets(self, spec: DiffusionSpec) -> list[str]:
        """`peft_lora_target_modules` wins over `flux_lora_target`."""
        return spec.peft_lora_target_modules or _TARGETS[spec.flux_lora_target]

    def gradient_checkpointing(self, denoiser: Any) -> None:
        """Recompute every block in the backward pass."""
        denoiser.enable_gradient_checkpointing()

    def render(self, denoiser: Any, vae: Any, base: BaseModel, request: RenderRequest) -> Image.Image:
        """Draw with the public pipeline, so that a sample shows what users of the file will get."""
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder, subfolder="scheduler")
        build: Any = FluxPipeline  # its annotations do not admit the absent encoders
        pipeline = build(
            transformer=denoiser, vae=vae, scheduler=scheduler,
            text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        dtype = next(denoiser.parameters()).dtype
        tokens = pipeline(
            **{name: tensor.to(base.device, dtype) for name, tensor in request.conditioning.items()},
            width=request.width, height=request.height, num_inference_steps=request.steps,
            guidance_scale=request.guidance, output_type="latent",
            generator=torch.Generator().manual_seed(request.seed),
        ).images  # fmt: skip
        latents = pipeline._unpack_latents(tokens, request.height, request.width, pipeline.vae_scale_factor)  # noqa: SLF001
        latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        with torch.no_grad():
            pixels = vae.decode(latents, return_dict=False)[0]
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def save_lora(self, folder: Path, tensors: Conditioning, adapter_config: dict[str, Any]) -> Path:
        """`pytorch_lora_weights.safetensors` with diffusers' keys and adapter metadata."""
        layers: dict[str, Any] = dict(tensors)
        FluxPipeline.save_lora_weights(
            folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=adapter_config
        )
        return folder / "pytorch_lora_weights.safetensors"


def _patch_positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Position ids [rows*columns, 3]: (0, row, column)."""
    ids = torch.zeros(rows, columns, 3, device=like.device, dtype=like.dtype)
    ids[..., 1] += torch.arange(rows, device=like.device, dtype=like.dtype)[:, None]
    ids[..., 2] += torch.arange(columns, device=like.device, dtype=like.dtype)[None, :]
    return ids.reshape(rows * columns, 3)


FAMILY = Flux()
