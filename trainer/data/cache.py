# pyright: basic
"""Latents and text embeddings on disk, keyed by content: a replaced picture or another encoder is another key."""

import hashlib
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class TensorCache:
    """A folder of safetensors files. Safe to share between runs of the same machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def load(self, key: str) -> dict[str, Tensor]:
        """The stored tensors, on the CPU. Raises OSError when the key is not there."""
        return load_file(self._path(key))

    def store(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store whole or not at all."""
        target = self._path(key)
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        scratch.replace(target)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def content_key(*parts: object) -> str:
    """The hex sha256 over everything that determines the cached value."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()
