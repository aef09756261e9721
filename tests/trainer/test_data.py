# pyright: basic
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import FIXTURE
from PIL import Image

from shared.contracts.training.datasets import DatasetSpec
from trainer.control import Control
from trainer.data.buckets import BucketRule, Placement, place
from trainer.data.cache import TensorCache
from trainer.data.discover import Picture, discover
from trainer.data.pictures import open_rgb, placed_pixels, upright_size
from trainer.data.prepare import CachedTensors, Encoding, cache_latents, cache_texts
from trainer.data.sampler import Plan, Sampler
from trainer.failures import AttemptFailed
from trainer.families.flux import FAMILY
from trainer.families.protocol import BaseModel
from trainer.report.events import Redactor, Reporter
from trainer.report.spool import Spool

SMALL = BucketRule(edge=32, edge_type="pixel_area", rounding=2, alignment=8)


def rule(edge: float = 1024, edge_type: str = "pixel_area", **settings: Any) -> BucketRule:
    return BucketRule(edge=edge, edge_type=edge_type, rounding=2, alignment=64, **settings)


@pytest.mark.parametrize(
    ("size", "settings", "bucket"),
    [
        ((1024, 1024), rule(), (1024, 1024)),
        ((1920, 1080), rule(), (1344, 768)),
        ((1080, 1920), rule(), (768, 1344)),
        ((3000, 2000), rule(), (1280, 832)),
        ((512, 768), rule(), (832, 1280)),
        ((4000, 1000), rule(), (2048, 512)),
        ((640, 480), rule(512), (576, 448)),
        ((1000, 1000), rule(1.0, "area"), (1024, 1024)),
        ((1920, 1080), rule(1.0, "area"), (1344, 768)),
        ((1920, 1080), rule(512, "pixel"), (896, 512)),
        ((1080, 1920), rule(512, "pixel"), (512, 896)),
        ((1920, 1080), rule(aspect="square"), (1024, 1024)),
    ],
)
def test_bucket_sizes(size: tuple[int, int], settings: Any, bucket: tuple[int, int]) -> None:
    placement = place(*size, settings)
    assert placement is not None
    assert placement.size == bucket
    assert placement.resized[0] >= bucket[0]
    assert placement.resized[1] >= bucket[1]
    assert placement.resized[0] == bucket[0] or placement.resized[1] == bucket[1]


def save_turned(path: Path, orientation: int) -> None:
    """A 4x2 picture, red on its left half when seen upright, stored with an EXIF orientation."""
    upright = Image.new("RGB", (40, 20), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if undo[orientation] is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_is_honoured_in_size_and_pixels(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    save_turned(path, orientation)
    assert upright_size(path) == (40, 20)
    picture = open_rgb(path)
    assert picture.size == (40, 20)
    assert picture.getpixel((2, 10)) == (255, 0, 0)
    assert picture.getpixel((37, 10)) == (0, 0, 255)


def test_every_common_mode_becomes_rgb(tmp_path: Path) -> None:
    transparent = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16))
    cases = {
        "rgba.png": (transparent, (255, 255, 255)),
        "deep.png": (deep, (255, 255, 255)),
        "grey.png": (Image.new("L", (8, 8), 128), (128, 128, 128)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
        "one.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    }
    for name, (picture, expected) in cases.items():
        picture.save(tmp_path / name)
        opened = open_rgb(tmp_path / name)
        assert opened.mode == "RGB"
        assert opened.getpixel((4, 4)) == expected, name
    pixels = placed_pixels(tmp_path / "rgba.png", Placement((8, 8), (8, 8), (0, 0)))
    assert pixels.shape == (3, 8, 8)
    assert pixels.max() == pixels.min() == 1.0


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    spool = Spool(tmp_path / "spool", "job", "attempt")
    opened = Reporter(spool, Redactor())
    opened.emit("hello")
    yield opened
    spool.close()


def test_broken_files_are_reported_once_and_left_out(
    tmp_path: Path, reporter: Reporter, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted(digits.iterdir())[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    Image.new("RGB", (100, 100)).save(tmp_path / "far-too-large.png")
    dataset = DatasetSpec(id="d", instance_data_dir=str(tmp_path))
    found = discover(dataset, tmp_path, SMALL, reporter)
    assert len(found) == 2
    assert reporter.spool.last_seq == 3  # hello and one warning each


def test_a_replaced_picture_has_new_latents(tmp_path: Path, reporter: Reporter) -> None:
    """Upstream keys latents by file name, so a replaced file trains on the old picture."""
    base = BaseModel(FIXTURE, torch.device("cpu"), torch.float32)
    vae = FAMILY.load_vae(base)
    encoding = Encoding("text", "vae", 16, "float32")
    dataset = DatasetSpec(id="d", instance_data_dir=str(tmp_path))
    cache = TensorCache(tmp_path / "cache")

    def latents_of(colour: tuple[int, int, int]) -> torch.Tensor:
        path = tmp_path / "same-name.png"
        stamp = (1_600_000_000, 1_600_000_000)
        Image.new("RGB", (32, 32), colour).save(path)
        os.utime(path, stamp)
        pictures = discover(dataset, tmp_path, SMALL, reporter)
        usable = cache_latents(FAMILY, vae, encoding, pictures, 4, cache, reporter, Control())
        return CachedTensors(cache, encoding).latents(usable)

    red, blue = latents_of((255, 0, 0)), latents_of((0, 0, 255))
    assert not torch.allclose(red, blue)
    assert torch.equal(red, latents_of((255, 0, 0)))


def test_shuffled_epochs_keep_latents_and_captions_together(
    digits: Path, reporter: Reporter, shared_cache: Path
) -> None:
    base = BaseModel(FIXTURE, torch.device("cpu"), torch.float32)
    dataset = DatasetSpec(id="d", instance_data_dir=str(digits), caption_strategy="textfile")
    pictures = discover(dataset, digits, SMALL, reporter)
    encoding = Encoding("pairs", "pairs", 16, "float32")
    cache = TensorCache(shared_cache)
    prompts = [caption for picture in pictures for caption in picture.captions]
    cache_texts(FAMILY, base, encoding, prompts, cache, Control())
    cache_latents(FAMILY, FAMILY.load_vae(base), encoding, pictures, 4, cache, reporter, Control())
    cached = CachedTensors(cache, encoding)
    truth = {
        cached.latents([picture]).numpy().tobytes(): cached.conditioning([picture.captions[0]])["pooled_prompt_embeds"][
            0
        ]
        for picture in pictures
    }
    sampler = Sampler(pictures, plans(4), seed=5, dropout=0.0)
    for _ in range(sampler.batches_in(3)):
        latents, conditioning = cached.of_visits(pictures, sampler.next_batch())
        for latent, pooled in zip(latents, conditioning["pooled_prompt_embeds"], strict=True):
            assert torch.equal(truth[latent[None].numpy().tobytes()], pooled)
    assert sampler.state.epoch == 3


def plans(batch_size: int, **settings: Any) -> dict[str, Plan]:
    return {"d": Plan(batch_size, **settings)}


def pictures_of(sizes: list[tuple[int, int]], dataset: str = "d") -> list[Picture]:
    return [
        Picture(dataset, Path(f"{index}.png"), str(index), Placement(size, size, (0, 0)), ("a", "b"))
        for index, size in enumerate(sizes)
    ]


def test_order_is_a_function_of_seed_and_epoch_only() -> None:
    pictures = pictures_of([(32, 32)] * 9 + [(48, 24)] * 5)
    one, other = (Sampler(pictures, plans(2), seed=3, dropout=0.2) for _ in range(2))
    for _ in range(11):
        other.next_batch()
    assert one.batches_of(4) == other.batches_of(4)
    assert one.batches_of(4) != one.batches_of(5)
    assert one.batches_of(4) != Sampler(pictures, plans(2), seed=4, dropout=0.2).batches_of(4)


def test_a_batch_never_mixes_sizes_and_each_picture_comes_once_per_epoch() -> None:
    pictures = pictures_of([(32, 32)] * 8 + [(48, 24)] * 4)
    batches = Sampler(pictures, plans(4), seed=3, dropout=0.0).batches_of(0)
    for batch in batches:
        assert len({pictures[visit.picture].placement.size for visit in batch}) == 1
    assert sorted(visit.picture for batch in batches for visit in batch) == list(range(12))


def test_a_bucket_too_small_for_a_batch_says_how_many_repeats_would_do() -> None:
    pictures = pictures_of([(32, 32)] * 8 + [(48, 24)] * 3)
    sampler = Sampler(pictures, plans(8), seed=3, dropout=0.0)
    assert sampler.notes == ["d/48x24 has 3 pictures for batches of 8: set repeats >= 2"]
    assert not Sampler(pictures, plans(8, repeats=2), seed=3, dropout=0.0).notes
    with pytest.raises(AttemptFailed, match="repeats >= 2"):
        Sampler(pictures[8:], plans(8), seed=3, dropout=0.0)


def test_dropped_captions_are_about_as_many_as_asked_for() -> None:
    sampler = Sampler(pictures_of([(32, 32)] * 400), plans(4), seed=3, dropout=0.25)
    dropped = sum(visit.caption is None for batch in sampler.batches_of(0) for visit in batch)
    assert 60 < dropped < 140
