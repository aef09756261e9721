# pyright: basic
"""What the loop asks of a model family. An adapter is one file; everything else lives once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec

Conditioning = dict[str, Tensor]
"""Text embeddings by name; every tensor has the batch as its first axis."""


@dataclass
class BaseModel:
    """A complete base model in a local diffusers folder, and where and in which number type it runs."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    variant: str | None = None


class Family(Protocol):
    """A family returns predictions in one convention (noise minus clean for flow), so targets live in the loop."""

    name: str
    objective: Literal["flow"]
    pixel_multiple: int
    """Picture sides must be a multiple of this many pixels for a base of usual width."""

    def load_text_encoders(self, base: BaseModel) -> Any:
        """Load tokenizers and text encoders only."""
        ...

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Embed prompts; CPU tensors in the encoder's number type."""
        ...

    def load_vae(self, base: BaseModel) -> Any:
        """Load the VAE only, in float32: half precision overflows in some decoders."""
        ...

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] of pixels [B, 3, H, W] in -1..1; the distribution's mean, so it is repeatable."""
        ...

    def load_denoiser(self, base: BaseModel) -> Any:
        """Load the network that is trained, frozen and in eval mode."""
        ...

    def side_multiple(self, base: BaseModel) -> int:
        """The multiple of pixels that this base's VAE and patches need."""
        ...

    def sequence_length(self, latents: Tensor) -> int:
        """Image tokens per picture for latents [B, C, h, w]."""
        ...

    def predict(
        self, denoiser: Any, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """The predicted noise minus clean, [B, C, h, w], for sigma [B] in 0..1."""
        ...

    def lora_targets(self, spec: DiffusionSpec) -> list[str]:
        """Module name endings that get an adapter."""
        ...

    def gradient_checkpointing(self, denoiser: Any) -> None:
        """Trade compute for memory."""
        ...

    def render(self, denoiser: Any, vae: Any, base: BaseModel, request: "RenderRequest") -> Any:
        """One PIL picture."""
        ...

    def save_lora(self, folder: Path, tensors: Conditioning, adapter_config: dict[str, Any]) -> Path:
        """Write the adapter in diffusers' layout and return the file."""
        ...


@dataclass(frozen=True)
class RenderRequest:
    """One picture to draw. Sizes in pixels."""

    conditioning: Conditioning
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
