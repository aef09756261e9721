# pyright: basic
"""What the loop asks of a model family. An adapter is one small file; everything else lives once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.buckets import Placement

Objective = Literal["epsilon", "v_prediction", "flow"]
Conditioning = dict[str, Tensor]
"""Text embeddings by name, called as the family's pipeline calls its arguments; the batch is every first axis."""


@dataclass
class BaseModel:
    """A complete base model in a local diffusers folder, and where and in which number type it runs."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    variant: str | None = None
    schedule: dict[str, Any] = field(default_factory=dict)
    """Settings that replace those of the base's scheduler, in training and in drawing."""


class Family(Protocol):
    """Predictions come in one convention per objective, so noising and targets live in the loop.

    `flow`: time is the noise level in 0..1 and the prediction is noise minus clean. `epsilon` and `v_prediction`: time
    is the step of the base's noise schedule, an integer, and the prediction is what the base was trained to give.
    """

    name: str
    part: Literal["unet", "transformer"]
    """The denoiser's name in the base model's folder and in LoRA keys."""
    attention_endings: list[str]
    """Module name endings of the attention's projections."""

    def objective(self, base: BaseModel) -> Objective:
        """What the base was trained to predict."""
        ...

    def load_text_encoders(self, base: BaseModel) -> Any:
        """Load tokenizers and text encoders only."""
        ...

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Embed prompts; CPU tensors in the encoder's number type."""
        ...

    def conditioning_of(self, placement: Placement) -> Conditioning:
        """What the network is told of one picture besides its caption, without a batch axis; often nothing."""
        ...

    def load_vae(self, base: BaseModel) -> Any:
        """Load the VAE only, in float32: half precision overflows in some decoders."""
        ...

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] of pixels [B, 3, H, W] in -1..1; the distribution's mean, so it is repeatable."""
        ...

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in about -1..1: the inverse of `encode_image`, on the VAE's device."""
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
        self, denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """The prediction, [B, C, h, w], for time [B]."""
        ...

    def lora_targets(self, denoiser: Any, spec: DiffusionSpec) -> list[str]:
        """Module names, or endings of them, that get an adapter."""
        ...

    def render(self, denoiser: Any, vae: Any, base: BaseModel, request: "RenderRequest") -> Any:
        """One PIL picture."""
        ...

    def add_adapter(self, denoiser: Any, config: Any) -> None:
        """Put a LoRA into the denoiser and leave only its parameters trainable. ValueError when no layer matches."""
        ...

    def save_lora(self, folder: Path, tensors: Conditioning, adapter_config: dict[str, Any]) -> list[Path]:
        """Write tensors of PEFT names so that the family's own loader reads them; returns the files, weights first."""
        ...

    def read_lora(self, folder: Path) -> Conditioning:
        """Tensors of a folder written by `save_lora`, by PEFT name."""
        ...


@dataclass(frozen=True)
class RenderRequest:
    """One picture to draw. Sizes in pixels; `negative` is what guidance steers away from."""

    conditioning: Conditioning
    negative: Conditioning
    seed: int
    width: int
    height: int
    steps: int
    guidance: float


def collated(entries: list[Conditioning]) -> Conditioning:
    """One batch of entries without batch axes; shorter texts are filled up with zeros, which masks read as absent."""
    return {name: _stacked([entry[name] for entry in entries]) for name in entries[0]}


def placed(conditioning: Conditioning, device: torch.device, dtype: torch.dtype) -> Conditioning:
    """The same on another device; numbers with a point in another type, masks and counts as they are."""
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
        for name, tensor in conditioning.items()
    }


def _stacked(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
