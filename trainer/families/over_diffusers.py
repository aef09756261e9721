# pyright: basic
"""What the families do alike, over the vendor's pipeline class: load parts, name LoRA layers, draw, write adapters."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.buckets import Placement
from trainer.families.base_model import parts_of, text_parts
from trainer.families.protocol import BaseModel, Conditioning, Objective, RenderRequest, placed

ALL_LINEAR = "all-linear"
LORA_FILE_NAME = "pytorch_lora_weights.safetensors"


class DiffusersFamily:
    """The shared part of every adapter; a family adds `encode_text` and `predict`, and changes what differs.

    `trainer.families.protocol.Family` says what each method promises.
    """

    name: str
    pipeline_class: Any
    denoiser_class: Any
    vae_class: Any = AutoencoderKL
    part: Literal["unet", "transformer"] = "transformer"
    patch = 2
    """Sides of the denoiser's patches, in latent pixels."""
    attention_endings: list[str] = [
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    ]  # fmt: skip

    def objective(self, base: BaseModel) -> Objective:  # noqa: ARG002 -- the noise-predicting families read the base
        """Flow matching, as nearly all of them."""
        return "flow"

    def load_text_encoders(self, base: BaseModel) -> Any:
        """The vendor's pipeline without denoiser and VAE."""
        wanted = list(text_parts(base.folder))
        return self.pipeline_of(base, {}, loaded=wanted, dtype=base.dtype, variant=base.variant).to(base.device)

    def load_vae(self, base: BaseModel) -> Any:
        """The VAE in float32 on the training device."""
        vae = self.vae_class.from_pretrained(
            base.folder, subfolder="vae", dtype=torch.float32, local_files_only=True, variant=base.variant
        )
        return vae.to(base.device).requires_grad_(False).eval()

    def load_denoiser(self, base: BaseModel) -> Any:
        """The network, frozen."""
        denoiser = self.denoiser_class.from_pretrained(
            base.folder, subfolder=self.part, dtype=base.dtype, local_files_only=True, variant=base.variant
        )
        return denoiser.to(base.device).requires_grad_(False).eval()

    def conditioning_of(self, placement: Placement) -> Conditioning:  # noqa: ARG002 -- SDXL reads it
        """Nothing besides the caption."""
        return {}

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Mean latents, shifted and scaled to unit variance."""
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        return ((latents - _shift(vae)) * vae.config.scaling_factor).cpu()

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Undo the scale and the shift, then decode."""
        with torch.no_grad():
            scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + _shift(vae)
            return vae.decode(scaled, return_dict=False)[0]

    def side_multiple(self, base: BaseModel) -> int:
        """VAE reduction times the patch."""
        config: Any = self.vae_class.load_config(base.folder, subfolder="vae", local_files_only=True)
        return self.vae_reduction(config) * self.patch

    def vae_reduction(self, config: dict[str, Any]) -> int:
        """How many pixels lie under one latent pixel's side."""
        return 2 ** (len(config["block_out_channels"]) - 1)

    def sequence_length(self, latents: Tensor) -> int:
        """One token per patch."""
        return latents.shape[-2] * latents.shape[-1] // self.patch**2

    def lora_targets(self, denoiser: Any, spec: DiffusionSpec) -> list[str]:
        """The attention's projections; `peft_lora_target_modules` names others, or `all-linear`."""
        named = spec.peft_lora_target_modules
        if named == [ALL_LINEAR]:
            return [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
        return named or self.attention_endings

    def render(self, denoiser: Any, vae: Any, base: BaseModel, request: RenderRequest) -> Image.Image:
        """Draw with the public pipeline, so that a sample shows what users of the file will get.

        Only decoding is ours: pipelines hand half-precision latents to the float32 VAE.
        """
        pipeline = self.pipeline_of(base, {self.part: denoiser, "vae": vae}, loaded=["scheduler"])
        pipeline.set_progress_bar_config(disable=True)
        dtype = next(denoiser.parameters()).dtype
        drawn = pipeline(
            **self.pipeline_arguments(
                placed(request.conditioning, base.device, dtype), placed(request.negative, base.device, dtype),
                request.guidance,
            ),
            width=request.width, height=request.height, num_inference_steps=request.steps, output_type="latent",
            generator=torch.Generator().manual_seed(request.seed),
        ).images  # fmt: skip
        with torch.autocast(base.device.type, enabled=False):
            pixels = self.decode_latents(vae, self.drawn_latents(pipeline, drawn, request))
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """The pipeline's arguments for one prompt, one negative prompt and a guidance scale."""
        negatives = {f"negative_{name}": tensor for name, tensor in negative.items()}
        return {**conditioning, **negatives, "guidance_scale": guidance}

    def drawn_latents(self, pipeline: Any, drawn: Tensor, request: RenderRequest) -> Tensor:  # noqa: ARG002 -- tokens
        """The latents [1, C, h, w] that `decode_latents` takes, of what the pipeline returned."""
        return drawn

    def add_adapter(self, denoiser: Any, config: Any) -> None:
        """With diffusers' own method."""
        denoiser.add_adapter(config)

    def save_lora(self, folder: Path, tensors: Conditioning, adapter_config: dict[str, Any]) -> list[Path]:
        """`pytorch_lora_weights.safetensors` with diffusers' keys and adapter metadata."""
        layers = {f"{self.part}_lora_layers": dict(tensors), f"{self.part}_lora_adapter_metadata": adapter_config}
        self.pipeline_class.save_lora_weights(folder, **layers)
        return [folder / LORA_FILE_NAME]

    def read_lora(self, folder: Path) -> Conditioning:
        """The file without the denoiser's name in its keys."""
        return {name.removeprefix(f"{self.part}."): value for name, value in load_file(folder / LORA_FILE_NAME).items()}

    def pipeline_of(self, base: BaseModel, given: dict[str, Any], loaded: list[str], **options: Any) -> Any:
        """The base's pipeline from `given` objects and `loaded` parts; all others are left out."""
        absent = dict.fromkeys(name for name in parts_of(base.folder) if name not in loaded)
        return self.pipeline_class.from_pretrained(base.folder, local_files_only=True, **{**absent, **given}, **options)


class TokenFamily(DiffusersFamily):
    """A family whose denoiser takes 2x2 latent patches as tokens: FLUX.1's layout."""

    def drawn_latents(self, pipeline: Any, drawn: Tensor, request: RenderRequest) -> Tensor:
        """Tokens laid out as a picture."""
        reduction = pipeline.vae_scale_factor
        return unpacked(drawn, request.height // reduction, request.width // reduction)


def packed(latents: Tensor) -> Tensor:
    """Tokens [B, h*w/4, 4C] of latents [B, C, h, w], each a 2x2 patch."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, height, width] of tokens: the inverse of `packed`."""
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, height, width)


@lru_cache(maxsize=64)
def patch_positions(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Position ids [rows*columns, 3] of FLUX.1's layout: (0, row, column). Made once per size; never change them."""
    ids = torch.zeros(rows, columns, 3, device=device, dtype=dtype)
    ids[..., 1] += torch.arange(rows, device=device, dtype=dtype)[:, None]
    ids[..., 2] += torch.arange(columns, device=device, dtype=dtype)[None, :]
    return ids.reshape(rows * columns, 3)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
