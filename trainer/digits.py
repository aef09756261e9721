# pyright: basic
"""scikit-learn's 1,797 real handwritten digits as small colour pictures, and a judge that reads digits back."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

SIDE = 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RED = (0.9, 0.1, 0.1)
YELLOW = (0.95, 0.9, 0.2)
_SMALL = 8

Floats = NDArray[np.float32]


def caption_of(digit: int) -> str:
    """The caption that the base model was trained with."""
    return f"a handwritten digit {WORDS[digit]}"


@cache
def ink() -> tuple[Floats, NDArray[np.int64]]:
    """Ink coverage [N, 32, 32] in 0..1 and labels [N]."""
    data: Any = load_digits()
    size = (SIDE, SIDE)
    pictures = [
        np.asarray(Image.fromarray(picture.astype(np.float32) / 16.0).resize(size, Image.Resampling.BICUBIC))
        for picture in data.images
    ]
    return np.stack(pictures).clip(0, 1), data.target.astype(np.int64)


def tinted(coverage: Floats, foreground: tuple[float, ...], background: tuple[float, ...]) -> Floats:
    """Colour pictures [..., 32, 32, 3] in 0..1 from ink coverage [..., 32, 32]."""
    mixed = coverage[..., None] * np.array(foreground) + (1 - coverage[..., None]) * np.array(background)
    return mixed.astype(np.float32)


def accuracy(coverage: Floats, labels: NDArray[np.int64]) -> float:
    """The share of pictures [N, 32, 32] that a support vector machine trained on the real digits reads as labelled."""
    return float((_judge().predict(_shrunk(coverage)) == labels).mean())


@cache
def _judge() -> SVC:
    coverage, labels = ink()
    build: Any = SVC
    return build(gamma=0.05, C=10).fit(_shrunk(coverage), labels)


def _shrunk(coverage: Floats) -> Floats:
    block = SIDE // _SMALL
    return coverage.reshape(-1, _SMALL, block, _SMALL, block).mean(axis=(2, 4)).reshape(-1, _SMALL * _SMALL)
