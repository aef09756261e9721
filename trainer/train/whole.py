# pyright: basic
"""The trained part of full fine-tuning: every weight of the denoiser, in diffusers' layout."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.files import settle_header

WEIGHTS_FILE_NAME = "diffusion_pytorch_model.safetensors"


class WholeModel:
    """A denoiser of which everything learns, in float32: small updates would vanish in half precision."""

    def __init__(self, denoiser: Any) -> None:
        self.model = denoiser.float().requires_grad_(True)
        self._named = dict(denoiser.named_parameters())
        self.parameters: list[nn.Parameter] = list(self._named.values())

    @property
    def identity(self) -> dict[str, Any]:
        """Nothing more than that it is the whole."""
        return {"trained": "full"}

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by name, detached on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._named.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors of the same names and shapes back."""
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(tensors[name])

    def write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """Write `config.json` and the weights, as the class's `from_pretrained(folder)` loads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_config(folder)
        fixed = {name: value for name, value in self.model.state_dict().items() if name not in tensors}
        constants = {name: value.detach().to("cpu", copy=True) for name, value in fixed.items()}
        weights = folder / WEIGHTS_FILE_NAME
        save_file({**constants, **tensors}, weights, metadata={"format": "pt", **facts})
        settle_header(weights)
        return [weights, folder / "config.json"]

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The parameters of the file that `write` wrote."""
        return {name: value for name, value in load_file(folder / WEIGHTS_FILE_NAME).items() if name in self._named}
