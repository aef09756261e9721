# pyright: basic
"""What diffusers' example scripts use of torchvision, made of Pillow.

torchvision itself is absent: the one on PyPI does not work beside a torch that was built for CPUs.
Pictures of the benchmark already have the size that is trained, so resizing and cropping leave them as they are.
"""

import enum
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image


class InterpolationMode(enum.Enum):
    """The names that scripts ask for."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self._transforms = transforms

    def __call__(self, picture: Any) -> Any:
        for transform in self._transforms:
            picture = transform(picture)
        return picture


class Resize:
    """The shorter side becomes `size` pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self._size, self._filter = size, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        shorter = min(picture.size)
        if shorter == self._size:
            return picture
        width, height = (side * self._size // shorter for side in picture.size)
        return picture.resize((width, height), self._filter)


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A rectangle, all in pixels."""
    return picture.crop((left, top, left + width, top + height))


class CenterCrop:
    """The middle square of `size` pixels."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = ((side - self._size) // 2 for side in picture.size)
        return crop(picture, top, left, self._size, self._size)


class RandomCrop:
    """Some square of `size` pixels."""

    def __init__(self, size: int) -> None:
        self._size = size

    @staticmethod
    def get_params(picture: Image.Image, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width)."""
        height, width = output_size
        top, left = (
            int(torch.randint(0, spare + 1, (1,))) for spare in (picture.height - height, picture.width - width)
        )
        return top, left, height, width

    def __call__(self, picture: Image.Image) -> Image.Image:
        return crop(picture, *self.get_params(picture, (self._size, self._size)))


class RandomHorizontalFlip:
    """Mirrored with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self._p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        mirrored = float(torch.rand(1)) < self._p
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


class Lambda:
    """Any function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, picture: Any) -> Any:
        return self._function(picture)


class ToTensor:
    """Float32 [channels, height, width] in 0..1."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)


class Normalize:
    """(value - mean) / deviation."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self._mean, self._std = mean[0], std[0]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.sub(self._mean).div_(self._std)


def install() -> None:
    """From now on `from torchvision import transforms` finds what stands here; torchvision itself must be absent."""
    root, transforms, functional = (
        ModuleType(name)
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    )  # fmt: skip
    for each in (
        InterpolationMode, Compose, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, Lambda, ToTensor, Normalize,
    ):  # fmt: skip
        setattr(transforms, each.__name__, each)
    functional.crop = crop  # pyright: ignore[reportAttributeAccessIssue] -- a module made here
    transforms.functional = functional  # pyright: ignore[reportAttributeAccessIssue] -- as above
    root.transforms = transforms  # pyright: ignore[reportAttributeAccessIssue] -- as above
    sys.modules.update({module.__name__: module for module in (root, transforms, functional)})
