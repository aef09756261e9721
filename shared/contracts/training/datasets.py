"""The dataloader list (multidatabackend): which entries can be trained from, checked once for gateway and trainer."""

from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.dataset_keys import (
    IGNORED,
    LIMITS,
    OTHER_CAPTIONS,
    OTHER_CROP_STYLES,
    OTHER_DATASET_TYPES,
    OTHER_TYPES,
    REFUSED,
    TABLE_IGNORED,
)
from shared.contracts.training.problems import ConfigRejected, FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown


class CaptionTable(msgspec.Struct, frozen=True, kw_only=True):
    """Where captions stand when they stand in a table: a parquet, JSON lines, CSV or TSV file beside the pictures."""

    path: str
    filename_column: str
    caption_column: str
    fallback_caption_column: str | None = None
    identifier_includes_extension: bool = False


class CaptionShuffle(msgspec.Struct, frozen=True, kw_only=True):
    """How many orders of its tags a caption is trained with; the first `position_start` tags keep their place."""

    count: int = 1
    seed: int | None = None
    split_on: Literal["comma", "space", "period"] = "comma"
    position_start: int = 0
    include_original: bool = True


class DatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One image dataset, to train from or to measure with (`eval`). A None leaves it to the training config."""

    id: str
    instance_data_dir: str
    dataset_type: Literal["image", "eval"] = "image"
    caption_strategy: Literal["textfile", "filename", "instanceprompt", "parquet"] = "filename"
    caption_extension: str = ".txt"
    parquet: CaptionTable | None = None
    caption_shuffle: CaptionShuffle | None = None
    instance_prompt: str | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False
    resolution: float | None = None
    resolution_type: Literal["pixel", "area", "pixel_area"] | None = None
    crop: bool = False
    crop_style: Literal["center", "centre", "corner", "random"] = "random"
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    crop_aspect_buckets: list[float] | None = None
    max_upscale_threshold: float | None = None
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None
    repeats: int = 0
    probability: float = 1.0
    train_batch_size: int | None = None
    start_epoch: int = 1
    end_epoch: int | None = None
    start_step: int = 0
    end_step: int | None = None
    max_num_samples: int | None = None
    vae_cache_clear_each_epoch: bool = False
    ignored_keys: list[str] = []

    @property
    def crops_by_chance(self) -> bool:
        """Each pass over the pictures has crops of its own."""
        return self.crop and "random" in {self.crop_style, self.crop_aspect}


_FIELDS = {field.name: field for field in msgspec.structs.fields(DatasetSpec) if field.name != "ignored_keys"}
KNOWN_KEYS = frozenset(_FIELDS) | IGNORED | frozenset(REFUSED) | {"disabled", "disable", "type"}
_OBJECTS = {"parquet", "caption_shuffle"}
_SINGLE = (_FIELDS.keys() | {"type"}) - _OBJECTS - {"crop_aspect_buckets"}
"""Keys that hold one value, never a list or an object."""
_MOST_ORDERS = 1000
_WIDEST = 100
_TEXT = {"id", "instance_data_dir", "instance_prompt", "caption_extension"}


INHERITED = frozenset(
    """
    caption_strategy instance_prompt prepend_instance_prompt only_instance_prompt disable_multiline_split
    minimum_image_size maximum_image_size target_downsample_size max_upscale_threshold
    """.split()  # noqa: SIM905 -- a word list reads better
)
"""Keys that the training config may set for every entry that does not set them itself."""


def check_dataloader(entries: list[dict[str, Any]], inherited: dict[str, Any] | None = None) -> list[DatasetSpec]:
    """Check the submitted list and return its enabled image and eval datasets in order.

    `inherited` holds what the training config sets for all (keys of INHERITED). Text-embed cache entries are accepted
    and need nothing here. Raises ConfigRejected with every problem; a field is named `dataloader[i].key`.
    """
    problems: list[FieldProblem] = []
    datasets: list[DatasetSpec] = []
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        place = f"dataloader[{index}]"
        values = {bare_key(key): value for key, value in entry.items()}
        if coerced(values.get("disabled", values.get("disable"))) is True:
            continue
        values = _single_values(place, values, problems)
        if values.get("id") is not None and str(values["id"]) in seen:
            problems.append(problem(f"{place}.id", "duplicate", "this id is used twice", "Give each entry its own id."))
        seen.add(str(values.get("id")))
        if values.get("dataset_type", "image") in {"text_embeds", "image_embeds"}:
            continue
        dataset = _checked_entry(place, {**(inherited or {}), **values}, problems)
        if dataset is not None:
            datasets.append(dataset)
    if not problems and not any(each.dataset_type == "image" for each in datasets):
        message = "no enabled image dataset is listed"
        problems.append(problem("dataloader", "missing", message, "Add one entry with dataset_type image."))
    if not problems and not any(_from_the_start(each) for each in datasets):
        message = "no dataset is used from the first step on"
        problems.append(problem("dataloader", "conflict", message, "Let one dataset start with epoch 1 and step 0."))
    if problems:
        raise ConfigRejected(problems)
    return datasets


def _from_the_start(dataset: DatasetSpec) -> bool:
    return dataset.dataset_type == "image" and dataset.start_epoch <= 1 and dataset.start_step <= 1


def _single_values(place: str, values: dict[str, Any], problems: list[FieldProblem]) -> dict[str, Any]:
    """The entry with None for each list or object where one value is meant; those problems are appended."""
    wrong = {name for name in _SINGLE & values.keys() if isinstance(values[name], list | dict)}
    problems.extend(not_one_value(f"{place}.{name}", values[name]) for name in sorted(wrong))
    return {name: None if name in wrong else value for name, value in values.items()}


def _checked_entry(place: str, values: dict[str, Any], problems: list[FieldProblem]) -> DatasetSpec | None:
    found: list[FieldProblem] = []
    for name, value in values.items():
        if name not in KNOWN_KEYS:
            found.append(unknown_key(f"{place}.{name}", name, KNOWN_KEYS))
        elif name in REFUSED and coerced(value) not in (None, False, 0, "", {}, []):
            message = f"{name} is known; this build does not support it"
            found.append(problem(f"{place}.{name}", "unsupported", message, REFUSED[name]))
    found.extend(_kind_problems(place, values))
    refused = {each.field for each in found}
    typed: dict[str, Any] = {}
    for name in _FIELDS.keys() & values.keys():
        if f"{place}.{name}" in refused or (value := _shaped(name, values[name])) is None:
            continue
        try:
            given = _as_table(place, name, value, found) if name in _OBJECTS else value
            typed[name] = converted(given, _FIELDS[name].type)
        except ValueError as error:
            message = f"{shown(values[name])} does not fit: {error}"
            found.append(problem(f"{place}.{name}", "wrong_type", message, "Correct it."))
    named = {each.field for each in (*problems, *found) if each.field.startswith(f"{place}.")}
    found.extend(each for each in _value_problems(place, typed) if each.field not in named)
    problems.extend(found)
    if found or named:
        return None
    return msgspec.convert({**typed, "ignored_keys": sorted(IGNORED & values.keys())}, DatasetSpec)


def _shaped(name: str, raw: Any) -> Any:
    if name != "caption_shuffle":
        return str(raw) if name in _TEXT and raw is not None else coerced(raw)
    return None if coerced(_enabled(raw)) in (False, None) else raw


def _enabled(shuffle: Any) -> Any:
    """What the object's own switch says; anything else speaks for itself."""
    return cast("dict[str, Any]", shuffle).get("enable", True) if isinstance(shuffle, dict) else shuffle


def _as_table(place: str, name: str, value: Any, found: list[FieldProblem]) -> dict[str, Any]:
    """The object of `parquet` or `caption_shuffle` with its own keys checked. Raises ValueError when it is none."""
    kind = CaptionTable if name == "parquet" else CaptionShuffle
    if not isinstance(value, dict):
        message = "an object is meant here"
        raise ValueError(message)  # noqa: TRY004 -- as every value that does not fit
    known = frozenset(field.name for field in msgspec.structs.fields(kind))
    also = TABLE_IGNORED if name == "parquet" else frozenset({"enable"})
    given: dict[str, Any] = {bare_key(str(key)): each for key, each in cast("dict[str, Any]", value).items()}
    found.extend(unknown_key(f"{place}.{name}.{key}", key, known | also) for key in given if key not in known | also)
    return {key: each for key in known & given.keys() if (each := given[key]) is not None}


def _kind_problems(place: str, values: dict[str, Any]) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    for name, built, others in (
        ("type", "local", OTHER_TYPES),
        ("dataset_type", "image or eval", OTHER_DATASET_TYPES),
        ("caption_strategy", "textfile, filename, instanceprompt or parquet", OTHER_CAPTIONS),
        ("crop_style", "center, corner or random", OTHER_CROP_STYLES),
    ):
        value = values.get(name)
        if value in others:
            message = f"{value} is known; this build reads {built}"
            found.append(problem(f"{place}.{name}", "unsupported", message, others[value]))
        elif name == "type" and value not in {None, built}:
            message = f"{shown(value)} is not a known {name}"
            found.append(problem(f"{place}.{name}", "wrong_type", message, f"Use {built}."))
    return found


def _value_problems(place: str, typed: dict[str, Any]) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    found.extend(
        problem(f"{place}.{name}", "missing", f"{name} is required", f"Set {name}.")
        for name in ("id", "instance_data_dir")
        if not typed.get(name)
    )
    for name, (low, high) in LIMITS.items():
        value = typed.get(name)
        if value is not None and not low <= value <= high:
            message = f"{value} is outside {low:g} to {high:g}"
            found.append(problem(f"{place}.{name}", "out_of_range", message, f"Choose from {low:g} to {high:g}."))
    return [*found, *_caption_problems(place, typed), *_crop_problems(place, typed)]


def _caption_problems(place: str, typed: dict[str, Any]) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    wants_prompt = typed.get("caption_strategy") == "instanceprompt" or typed.get("only_instance_prompt")
    if wants_prompt and not typed.get("instance_prompt"):
        message = "instanceprompt captions need an instance_prompt"
        found.append(problem(f"{place}.instance_prompt", "missing", message, "Set instance_prompt."))
    if typed.get("caption_strategy") == "parquet" and typed.get("parquet") is None:
        advice = "Add parquet with path, filename_column and caption_column."
        found.append(problem(f"{place}.parquet", "missing", "captions from a table need to know where it is", advice))
    shuffle: CaptionShuffle | None = typed.get("caption_shuffle")
    if shuffle is not None and not 1 <= shuffle.count <= _MOST_ORDERS:
        message = f"{shuffle.count} is outside 1 to {_MOST_ORDERS}"
        advice = f"Choose from 1 to {_MOST_ORDERS}: each order is embedded and stored."
        found.append(problem(f"{place}.caption_shuffle.count", "out_of_range", message, advice))
    if shuffle is not None and shuffle.position_start < 0:
        message = f"{shuffle.position_start} is less than 0"
        found.append(problem(f"{place}.caption_shuffle.position_start", "out_of_range", message, "Use 0 or more."))
    return found


def _crop_problems(place: str, typed: dict[str, Any]) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    sizes = [name for name in ("maximum_image_size", "target_downsample_size") if typed.get(name) is None]
    if len(sizes) == 1:
        message = "maximum_image_size and target_downsample_size mean something only together"
        found.append(problem(f"{place}.{sizes[0]}", "missing", message, f"Set {sizes[0]} too, or remove the other."))
    chooses = typed.get("crop") and typed.get("crop_aspect") in {"closest", "random"}
    aspects: list[float] = typed.get("crop_aspect_buckets") or []
    if chooses and not aspects:
        message = f"crop_aspect {typed['crop_aspect']} chooses from a list"
        advice = "List the aspect ratios, such as [1.0, 0.75, 1.5]."
        found.append(problem(f"{place}.crop_aspect_buckets", "missing", message, advice))
    if any(not 1 / _WIDEST <= aspect <= _WIDEST for aspect in aspects):
        message = f"an aspect ratio is outside 1/{_WIDEST} to {_WIDEST}"
        found.append(problem(f"{place}.crop_aspect_buckets", "out_of_range", message, "Correct it."))
    by_chance = typed.get("crop") and "random" in {typed.get("crop_style", "random"), typed.get("crop_aspect")}
    if by_chance and typed.get("vae_cache_clear_each_epoch"):
        message = "crops are drawn once, not again in each epoch"
        advice = "Remove it, and set repeats: each repeat has a random crop of its own."
        found.append(problem(f"{place}.vae_cache_clear_each_epoch", "conflict", message, advice))
    return found
