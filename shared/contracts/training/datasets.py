"""The dataloader list (multidatabackend): which entries can be trained from, checked once for gateway and trainer."""

from typing import Any, Literal

import msgspec

from shared.contracts.training.problems import ConfigRejected, FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown


class DatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One image dataset to train from. A None resolution means the training config's."""

    id: str
    instance_data_dir: str
    caption_strategy: Literal["textfile", "filename", "instanceprompt"] = "filename"
    instance_prompt: str | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False
    resolution: float | None = None
    resolution_type: Literal["pixel", "area", "pixel_area"] | None = None
    crop: bool = False
    crop_style: Literal["center", "centre", "corner"] = "center"
    crop_aspect: Literal["square", "preserve"] = "square"
    minimum_image_size: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None
    repeats: int = 0
    max_num_samples: int | None = None
    ignored_keys: list[str] = []


IGNORED = frozenset(
    """
    type dataset_type disabled disable metadata_backend cache_dir cache_dir_vae cache_file_suffix text_embeds
    image_embeds default skip_file_discovery preserve_data_backend_cache write_batch_size vae_cache_clear_each_epoch
    hash_filenames scan_for_errors delete_unwanted_images delete_problematic_images probability vae_cache_ondemand
    prepend_prompt image_processing_batch_size caption_shuffle_seed name description maximum_image_size
    target_downsample_size
    """.split()  # noqa: SIM905 -- a word list reads better
)
REFUSED = frozenset(
    """
    conditioning_data conditioning_type conditioning is_regularisation_data is_regularization_data caption_shuffle
    crop_aspect_buckets start_step end_step start_epoch end_epoch train_batch_size parquet csv huggingface
    aws_bucket_name aws_data_prefix aws_endpoint_url caption_filter_list max_upscale_threshold video audio
    """.split()  # noqa: SIM905 -- a word list reads better
)
OTHER_TYPES = frozenset({"aws", "csv", "huggingface", "parquet"})
OTHER_CAPTIONS = frozenset({"parquet", "huggingface", "csv"})
OTHER_DATASET_TYPES = frozenset({"image_embeds", "conditioning", "conditioning_image_embeds", "eval", "video", "audio"})
_LIMITS: dict[str, tuple[float, float]] = {
    "repeats": (0, 1_000_000),
    "resolution": (0.01, 8192),
    "max_num_samples": (1, 100_000_000),
    "minimum_image_size": (0, 100_000),
}
_FIELDS = {field.name: field for field in msgspec.structs.fields(DatasetSpec) if field.name != "ignored_keys"}
KNOWN_KEYS = frozenset(_FIELDS) | IGNORED | REFUSED
_SINGLE = _FIELDS.keys() | {"type", "dataset_type"}
"""Keys that hold one value, never a list or an object."""
_TEXT = {"id", "instance_data_dir", "instance_prompt"}


def check_dataloader(entries: list[dict[str, Any]]) -> list[DatasetSpec]:
    """Check the submitted list and return its enabled image datasets in order.

    Text-embed cache entries are accepted and need nothing here. Raises ConfigRejected with every problem; a field is
    named `dataloader[i].key`.
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
        if values.get("dataset_type", "image") == "text_embeds":
            continue
        dataset = _checked_entry(place, values, problems)
        if dataset is not None:
            datasets.append(dataset)
    if not datasets and not problems:
        message = "no enabled image dataset is listed"
        problems.append(problem("dataloader", "missing", message, "Add one entry with dataset_type image."))
    if problems:
        raise ConfigRejected(problems)
    return datasets


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
            found.append(problem(f"{place}.{name}", "unsupported", message, "Remove it."))
    found.extend(_kind_problems(place, values))
    typed: dict[str, Any] = {}
    for name in _FIELDS.keys() & values.keys():
        raw = values[name]
        value = str(raw) if name in _TEXT and raw is not None else coerced(raw)
        if value is None or (name == "caption_strategy" and value in OTHER_CAPTIONS):
            continue
        try:
            typed[name] = converted(value, _FIELDS[name].type)
        except ValueError as error:
            message = f"{shown(raw)} does not fit: {error}"
            found.append(problem(f"{place}.{name}", "wrong_type", message, "Correct it."))
    named = {each.field for each in problems if each.field.startswith(f"{place}.")}
    found.extend(each for each in _value_problems(place, typed) if each.field not in named)
    problems.extend(found)
    if found or named:
        return None
    return msgspec.convert({**typed, "ignored_keys": sorted(IGNORED & values.keys())}, DatasetSpec)


def _kind_problems(place: str, values: dict[str, Any]) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    for name, built, others in (
        ("type", "local", OTHER_TYPES),
        ("dataset_type", "image", OTHER_DATASET_TYPES),
        ("caption_strategy", "textfile, filename or instanceprompt", OTHER_CAPTIONS),
    ):
        value = values.get(name)
        if value in others:
            message = f"{value} is known; this build reads {built}"
            found.append(problem(f"{place}.{name}", "unsupported", message, f"Use {built}."))
        elif name != "caption_strategy" and value not in {None, built}:
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
    for name, (low, high) in _LIMITS.items():
        value = typed.get(name)
        if value is not None and not low <= value <= high:
            message = f"{value} is outside {low:g} to {high:g}"
            found.append(problem(f"{place}.{name}", "out_of_range", message, f"Choose from {low:g} to {high:g}."))
    wants_prompt = typed.get("caption_strategy") == "instanceprompt" or typed.get("only_instance_prompt")
    if wants_prompt and not typed.get("instance_prompt"):
        message = "instanceprompt captions need an instance_prompt"
        found.append(problem(f"{place}.instance_prompt", "missing", message, "Set instance_prompt."))
    return found
