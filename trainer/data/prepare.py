# pyright: basic
"""The caching stage: every latent and every text embedding is made once, then VAE and text encoders can go."""

import hashlib
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.control import Control
from trainer.data.cache import TensorCache, content_key
from trainer.data.discover import Picture
from trainer.data.pictures import UNREADABLE, placed_pixels
from trainer.data.sampler import Visit
from trainer.failures import AttemptFailed
from trainer.families.protocol import BaseModel, Conditioning, Family, collated
from trainer.report.events import Reporter

_log = logging.getLogger("trainer.data")
_MEMORY_BUDGET_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Encoding:
    """What a cached value depends on besides the picture or the prompt."""

    text_id: str
    vae_id: str
    max_length: int
    dtype: str

    def text_key(self, prompt: str) -> str:
        """The cache key of a prompt."""
        return content_key("text", self.text_id, self.max_length, self.dtype, prompt)

    def latent_key(self, picture: Picture) -> str:
        """The cache key of a picture: its bytes and its placement, never its name."""
        return content_key("latent", self.vae_id, "float32", picture.sha256, picture.placement)


class CachedTensors:
    """Reads the cache; what fits a byte budget stays in memory."""

    def __init__(self, cache: TensorCache, encoding: Encoding) -> None:
        self._cache = cache
        self._encoding = encoding
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._free_bytes = _MEMORY_BUDGET_BYTES

    def latents(self, pictures: list[Picture]) -> Tensor:
        """Latents [B, C, h, w] of pictures that share one size."""
        return torch.stack([self._load(self._encoding.latent_key(picture))["latents"] for picture in pictures])

    def conditioning(self, prompts: list[str]) -> Conditioning:
        """Embeddings with the prompts as first axis."""
        return collated([self._load(self._encoding.text_key(prompt)) for prompt in prompts])

    def of_visits(self, pictures: list[Picture], visits: list[Visit]) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of one batch: picture and caption come from the same visit, always."""
        seen = [pictures[visit.picture] for visit in visits]
        prompts = [
            "" if visit.caption is None else picture.captions[visit.caption]
            for picture, visit in zip(seen, visits, strict=True)
        ]
        return self.latents(seen), self.conditioning(prompts)

    def _load(self, key: str) -> dict[str, Tensor]:
        if key in self._kept:
            return self._kept[key]
        tensors = self._cache.load(key)
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if size_bytes <= self._free_bytes:
            self._free_bytes -= size_bytes
            self._kept[key] = tensors
        return tensors


def cache_texts(
    family: Family, base: BaseModel, encoding: Encoding, prompts: list[str], cache: TensorCache, control: Control
) -> int:
    """Embed what is missing; returns how many prompts were. One at a time, so batching never changes a bit."""
    missing = [prompt for prompt in dict.fromkeys(prompts) if encoding.text_key(prompt) not in cache]
    if not missing:
        return 0
    encoders = family.load_text_encoders(base)
    for prompt in missing:
        _stop_if_asked(control)
        embedded = family.encode_text(encoders, [prompt], encoding.max_length)
        cache.store(encoding.text_key(prompt), {name: tensor[0] for name, tensor in embedded.items()})
    return len(missing)


def cache_latents(
    family: Family,
    vae: Any,
    encoding: Encoding,
    pictures: list[Picture],
    batch_size: int,
    cache: TensorCache,
    reporter: Reporter,
    control: Control,
) -> list[Picture]:
    """Encode what is missing and return the pictures that could be decoded, in the same order.

    Groups are cut from all pictures, not from the missing ones: a run that was killed half way encodes the same
    groups again and gets the same bits.
    """
    broken: set[str] = set()
    for group in _groups(pictures, batch_size):
        _stop_if_asked(control)
        if all(encoding.latent_key(picture) in cache for picture in group):
            continue
        decoded: list[tuple[Picture, Tensor]] = []
        for picture in group:
            try:
                decoded.append((picture, torch.from_numpy(placed_pixels(picture.path, picture.placement))))
            except UNREADABLE as error:
                broken.add(picture.sha256)
                reporter.warning("broken_file", f"{picture.dataset_id}/{picture.path.name} is left out: {error}")
        if decoded:
            latents = family.encode_image(vae, torch.stack([pixels for _, pixels in decoded]))
            for (picture, _), latent in zip(decoded, latents, strict=True):
                if encoding.latent_key(picture) not in cache:
                    cache.store(encoding.latent_key(picture), {"latents": latent})
    usable = [picture for picture in pictures if picture.sha256 not in broken]
    if not usable:
        raise AttemptFailed("bad_data", "no picture could be decoded", "Upload the dataset again.")
    return usable


def fingerprint_of(pictures: list[Picture]) -> str:
    """A hash of everything the order of training depends on, apart from the seed."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr((picture.dataset_id, picture.sha256, picture.placement, picture.captions)).encode())
    return digest.hexdigest()


def _groups(pictures: list[Picture], batch_size: int) -> Iterator[list[Picture]]:
    by_size: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_size[picture.placement.size].append(picture)
    for members in by_size.values():
        iterator = iter(members)
        while group := list(itertools.islice(iterator, batch_size)):
            yield group


def _stop_if_asked(control: Control) -> None:
    control.raise_if_superseded()
    if (ending := control.ending("while preparing")) is not None:
        raise ending.failure
