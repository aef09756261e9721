# pyright: basic
"""Open pictures of every common kind as upright RGB."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainer.data.buckets import Placement

UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged or far too large."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I"})
_SIXTEEN_TO_EIGHT_BIT = 257
_ORIENTATION_TAG = 0x0112
_TURNED_SIDEWAYS = frozenset({5, 6, 7, 8})


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels after EXIF rotation, from the header only. Raises one of UNREADABLE."""
    with Image.open(path) as picture:
        width, height = picture.size
        sideways = picture.getexif().get(_ORIENTATION_TAG) in _TURNED_SIDEWAYS
    return (height, width) if sideways else (width, height)


def open_rgb(path: Path) -> Image.Image:
    """The picture as 8-bit RGB: rotated as EXIF says, 16 bit scaled, transparency laid on white. Raises UNREADABLE."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in _SIXTEEN_BIT_MODES:
            deep = np.asarray(picture, dtype=np.float64) / _SIXTEEN_TO_EIGHT_BIT
            return Image.fromarray(np.clip(deep + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
        if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
            layered = picture.convert("RGBA")
            white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layered).convert("RGB")
        return picture.convert("RGB")


def placed_pixels(path: Path, placement: Placement) -> np.ndarray:
    """Float32 pixels [3, H, W] in -1..1, resized and cropped. Raises one of UNREADABLE."""
    picture = open_rgb(path)
    if picture.size != placement.resized:
        picture = picture.resize(placement.resized, Image.Resampling.LANCZOS)
    left, top = placement.offset
    picture = picture.crop((left, top, left + placement.size[0], top + placement.size[1]))
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0
