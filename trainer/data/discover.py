"""Find the pictures of a dataset and what to train on each."""

import random
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.training.datasets import DatasetSpec
from trainer.data.buckets import BucketRule, Placement, place
from trainer.data.captions import captions_of
from trainer.data.pictures import SUFFIXES, UNREADABLE, upright_size
from trainer.failures import AttemptFailed
from trainer.files import sha256_of
from trainer.report.events import Reporter


@dataclass(frozen=True)
class Picture:
    """One usable picture. `sha256` is of the file's bytes, so a replaced file is a different picture."""

    dataset_id: str
    path: Path
    sha256: str
    placement: Placement
    captions: tuple[str, ...]


def discover(dataset: DatasetSpec, folder: Path, rule: BucketRule, reporter: Reporter) -> list[Picture]:
    """All usable pictures below `folder`, in the order of their relative names.

    A broken file is reported once and left out. Raises AttemptFailed(bad_data) when nothing is left.
    """
    found: list[Picture] = []
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        try:
            width, height = upright_size(path)
            if not _wanted(width, height, dataset):
                continue
            captions = tuple(captions_of(path, dataset))
            digest = sha256_of(path)
        except UNREADABLE as error:
            reporter.warning("broken_file", f"{dataset.id}/{path.relative_to(folder)} is left out: {error}")
            continue
        found.append(Picture(dataset.id, path, digest, place(width, height, rule), captions))
    if not found:
        advice = "Upload png, jpg, webp, bmp or tiff files, and check minimum_image_size and the aspect limits."
        raise AttemptFailed("bad_data", f"dataset {dataset.id} holds no usable picture", advice)
    return _limited(found, dataset)


def _wanted(width: int, height: int, dataset: DatasetSpec) -> bool:
    aspect = width / height
    too_small = dataset.minimum_image_size is not None and min(width, height) < dataset.minimum_image_size
    too_narrow = dataset.minimum_aspect_ratio is not None and aspect < dataset.minimum_aspect_ratio
    too_wide = dataset.maximum_aspect_ratio is not None and aspect > dataset.maximum_aspect_ratio
    return not (too_small or too_narrow or too_wide)


def _limited(found: list[Picture], dataset: DatasetSpec) -> list[Picture]:
    if dataset.max_num_samples is None or len(found) <= dataset.max_num_samples:
        return found
    # Seeded by the id: the subset is the same in every run.
    kept = random.Random(dataset.id).sample(range(len(found)), dataset.max_num_samples)  # noqa: S311 -- not a secret
    return [found[index] for index in sorted(kept)]
