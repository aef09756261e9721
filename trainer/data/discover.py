"""Find the pictures of a dataset and what to train on each."""

import random
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.training.datasets import DatasetSpec
from trainer.data.buckets import BucketRule, Placement, edge_of, in_pixels, place
from trainer.data.captions import Captions, MissingCaption
from trainer.data.pictures import SUFFIXES, UNREADABLE, upright_size
from trainer.failures import AttemptFailed
from trainer.files import sha256_of
from trainer.report.events import Reporter

_NAMED_AT_MOST = 5


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

    Where crops are drawn by chance, a picture comes once for each pass over the data, with crops of its own. A broken
    file is reported once and left out. Raises AttemptFailed(bad_data) when captions are missing or nothing is left.
    """
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        message = f"dataset {dataset.id}: {folder} holds no picture"
        raise AttemptFailed("bad_data", message, "Put png, jpg, webp, bmp or tiff files into it, or correct the path.")
    captions = Captions(dataset, folder, rule.seed)
    passes = dataset.repeats + 1 if dataset.crops_by_chance else 1
    found: list[list[Picture]] = []
    uncaptioned: list[str] = []
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        try:
            found.append(_placed(path, dataset, rule, captions, passes))
        except MissingCaption as missing:
            uncaptioned.append(f"{path.relative_to(folder)}: {missing}")
        except UNREADABLE as error:
            reporter.warning("broken_file", f"{dataset.id}/{path.relative_to(folder)} is left out: {error}")
    if uncaptioned:
        raise _without_captions(dataset, uncaptioned)
    usable = [group for group in found if group]
    if not usable:
        advice = "Check the files, minimum_image_size, max_upscale_threshold and the aspect limits."
        raise AttemptFailed("bad_data", f"dataset {dataset.id} holds no usable picture", advice)
    return [picture for group in _limited(usable, dataset) for picture in group]


def _placed(path: Path, dataset: DatasetSpec, rule: BucketRule, captions: Captions, passes: int) -> list[Picture]:
    """The picture once for each pass; nothing when the settings leave it out."""
    width, height = upright_size(path)
    if not _wanted(width, height, dataset, rule):
        return []
    digest = sha256_of(path)
    placements = [place(width, height, rule, f"{digest}/{number}") for number in range(passes)]
    if None in placements:
        return []
    called = tuple(captions.of(path))
    return [Picture(dataset.id, path, digest, placement, called) for placement in placements if placement is not None]


def _without_captions(dataset: DatasetSpec, places: list[str]) -> AttemptFailed:
    more = f"; and {len(places) - _NAMED_AT_MOST} more" if len(places) > _NAMED_AT_MOST else ""
    message = f"dataset {dataset.id} lacks captions: {'; '.join(places[:_NAMED_AT_MOST])}{more}"
    advice = (
        "Write the captions, or set caption_strategy to filename, or to instanceprompt with an instance_prompt; "
        "pictures that should be trained without words need caption_dropout_probability instead."
    )
    return AttemptFailed("bad_data", message, advice)


def _wanted(width: int, height: int, dataset: DatasetSpec, rule: BucketRule) -> bool:
    aspect = width / height
    smallest = dataset.minimum_image_size
    # Except for areas the shorter side counts.
    counted = edge_of(width, height, "area" if rule.edge_type == "area" else "pixel")
    too_small = smallest is not None and counted < in_pixels(smallest, rule.edge_type)
    too_narrow = dataset.minimum_aspect_ratio is not None and aspect < dataset.minimum_aspect_ratio
    too_wide = dataset.maximum_aspect_ratio is not None and aspect > dataset.maximum_aspect_ratio
    return not (too_small or too_narrow or too_wide)


def _limited(groups: list[list[Picture]], dataset: DatasetSpec) -> list[list[Picture]]:
    """At most `max_num_samples` pictures, each with all its passes."""
    if dataset.max_num_samples is None or len(groups) <= dataset.max_num_samples:
        return groups
    # Seeded by the id: the subset is the same in every run.
    kept = random.Random(dataset.id).sample(range(len(groups)), dataset.max_num_samples)  # noqa: S311 -- not a secret
    return [groups[index] for index in sorted(kept)]
