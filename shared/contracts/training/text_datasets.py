"""Where a language model's rows come from, checked once for gateway and trainer.

Entries of the dataloader list with `dataset_type: text`, or the config's own `dataset` member.
"""

from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.llm_keys import DATASET_SECTIONS
from shared.contracts.training.problems import FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown

RowFormat = Literal["text", "messages", "instruction", "prompt_completion", "preference"]


class TextDatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One folder of JSONL files, or one such file."""

    id: str
    instance_data_dir: str
    row_format: RowFormat | None = None
    """None: whatever the rows are."""
    evaluation: bool = False
    """Its rows are held out: evaluated and predicted, never trained on."""
    max_num_samples: int | None = None
    ignored_keys: list[str] = []


class TextData(msgspec.Struct, frozen=True, kw_only=True):
    """All datasets of one training."""

    datasets: list[TextDatasetSpec]
    eval_split: float | None = None
    """The share to hold out, where a dataset says so."""


_ALIASES = {
    "path": "instance_data_dir", "file": "instance_data_dir", "train": "instance_data_dir",
    "train_path": "instance_data_dir", "train_file": "instance_data_dir", "data_dir": "instance_data_dir",
    "dataset_path": "instance_data_dir", "format": "row_format", "dataset_format": "row_format", "eval": "evaluation",
    "max_samples": "max_num_samples", "validation_split": "eval_split", "test_size": "eval_split",
    "eval_path": "eval_path", "eval_file": "eval_path", "validation_path": "eval_path", "validation_file": "eval_path",
    "test_path": "eval_path",
}  # fmt: skip
_IGNORED = frozenset({"type", "dataset_type", "disabled", "disable", "name", "description", "cache_dir", "source"})
_FIELDS = frozenset(TextDatasetSpec.__struct_fields__) - {"ignored_keys"} | {"eval_split", "eval_path"}
KNOWN_KEYS = _FIELDS | _ALIASES.keys() | _IGNORED
_FORMATS: dict[object, RowFormat | None] = {
    "text": "text", "plain": "text", "messages": "messages", "chat": "messages", "chatml": "messages",
    "conversation": "messages", "conversations": "messages", "instruction": "instruction", "alpaca": "instruction",
    "instruct": "instruction", "prompt_completion": "prompt_completion", "completion": "prompt_completion",
    "preference": "preference", "dpo": "preference", "jsonl": None, "json": None, "auto": None, None: None,
}  # fmt: skip
_HERE = ("/", "~", ".")
_TYPES: dict[str, Any] = {"evaluation": bool, "max_num_samples": int, "eval_split": float}
_LIMITS: dict[str, tuple[float, float]] = {"max_num_samples": (1, 100_000_000), "eval_split": (0, 0.9)}


def check_text_data(config: dict[str, Any], dataloader: list[dict[str, Any]], problems: list[FieldProblem]) -> TextData:
    """The datasets of an LLM job, in order; problems are appended, each named `dataloader[i].key` or `dataset.key`."""
    entries = [(f"dataloader[{index}]", f"dataset-{index + 1}", entry) for index, entry in enumerate(dataloader)]
    for key, member in config.items():
        if bare_key(key) in DATASET_SECTIONS and member is not None:
            entries.extend(_members(key, member))
    datasets: list[TextDatasetSpec] = []
    splits: set[float] = set()
    for place, fallback_id, entry in entries:
        values = {bare_key(key): value for key, value in entry.items()}
        if coerced(values.get("disabled", values.get("disable"))) is not True:
            datasets.extend(_checked(place, fallback_id, values, splits, problems))
    for dataset in datasets:
        if sum(each.id == dataset.id for each in datasets) > 1:
            message = f"the id {dataset.id} is used twice"
            problems.append(problem("dataloader", "duplicate", message, "Give each entry its own id."))
            break
    if not any(not dataset.evaluation for dataset in datasets) and not problems:
        advice = "Add an entry to dataloader_config with dataset_type text and instance_data_dir."
        problems.append(problem("dataloader", "missing", "no dataset to train on is listed", advice))
    if len(splits) > 1:
        problems.append(problem("eval_split", "conflict", "two datasets hold out different shares", "Give one."))
    return TextData(datasets=datasets, eval_split=next(iter(splits), None))


def _members(key: str, member: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """The config's own datasets: a path, an object, or a list of these."""
    several = cast("list[Any]", member) if isinstance(member, list) else [member]
    entries: list[tuple[str, str, dict[str, Any]]] = []
    for index, item in enumerate(several):
        place = f"{key}[{index}]" if isinstance(member, list) else key
        fallback_id = "dataset" if len(several) == 1 else f"dataset-{index + 1}"
        entry = cast("dict[str, Any]", item) if isinstance(item, dict) else {"path": item}
        # A name is what people call a hub dataset; it is a path when nothing else is.
        values = {bare_key(name): value for name, value in entry.items()}
        if "name" in values and not any(_ALIASES.get(name, name) == "instance_data_dir" for name in values):
            entry = {**entry, "path": values["name"]}
        entries.append((place, fallback_id, entry))
    return entries


def _checked(
    place: str, fallback_id: str, given: dict[str, Any], splits: set[float], problems: list[FieldProblem]
) -> list[TextDatasetSpec]:
    found: list[FieldProblem] = []
    values = _values(place, given, found)
    kind = given.get("dataset_type", "text")
    if kind != "text":
        message = f"a language model trains on dataset_type text, not {shown(kind)}"
        found.append(problem(f"{place}.dataset_type", "unsupported", message, "Set dataset_type to text."))
    if given.get("type", "local") not in {"local", None}:
        message = f"{shown(given['type'])} is not read; this build reads local files"
        found.append(problem(f"{place}.type", "unsupported", message, "Use local."))
    for name in ("instance_data_dir", "eval_path"):
        found.extend(_path_problems(f"{place}.{name}", values.get(name), needed=name == "instance_data_dir"))
    problems.extend(found)
    if found:
        return []
    if values.get("eval_split"):
        splits.add(values.pop("eval_split"))
    values.pop("eval_split", None)
    held_out, known = values.pop("eval_path", None), str(values.pop("id", None) or fallback_id)
    ignored = sorted(_IGNORED & given.keys())
    dataset = msgspec.convert({**values, "id": known, "ignored_keys": ignored}, TextDatasetSpec)
    if held_out is None:
        return [dataset]
    return [dataset, TextDatasetSpec(id=f"{known}-eval", instance_data_dir=held_out, evaluation=True)]


def _values(place: str, given: dict[str, Any], found: list[FieldProblem]) -> dict[str, Any]:
    """The entry's members by field, typed; problems are appended."""
    values: dict[str, Any] = {}
    for key, raw in given.items():
        name, field = _ALIASES.get(key, key), f"{place}.{key}"
        value = coerced(raw)
        if name in _IGNORED or (value is None and name in _FIELDS):
            continue
        if name not in _FIELDS:
            found.append(unknown_key(field, key, KNOWN_KEYS))
        elif isinstance(value, list | dict):
            found.append(not_one_value(field, cast("object", value)))
        elif name in values:
            found.append(problem(field, "duplicate", f"{name} is given twice", "Keep one of the spellings."))
        elif name == "row_format":
            values[name] = _row_format(field, value, found)
        else:
            values[name] = _typed(field, name, value if name in _TYPES else raw, found)
    return values


def _typed(field: str, name: str, value: Any, found: list[FieldProblem]) -> Any:
    try:
        typed = converted(value, _TYPES.get(name, str))
    except ValueError as error:
        found.append(problem(field, "wrong_type", f"{shown(value)} does not fit: {error}", "Correct it."))
        return None
    low, high = _LIMITS.get(name, (0, 0))
    if name in _LIMITS and not low <= typed <= high:
        found.append(problem(field, "out_of_range", f"{typed} is outside {low:g} to {high:g}", "Correct it."))
    return typed


def _row_format(field: str, value: Any, found: list[FieldProblem]) -> RowFormat | None:
    word = value.lower() if isinstance(value, str) else value
    if word not in _FORMATS:
        known = ", ".join(sorted(str(name) for name in _FORMATS if name))
        found.append(problem(field, "unsupported", f"{shown(value)} is not a known format", f"Use one of {known}."))
        return None
    return _FORMATS[word]


def _path_problems(field: str, path: object, *, needed: bool) -> list[FieldProblem]:
    if path is None:
        message = "no folder and no file is named"
        return [problem(field, "missing", message, "Set instance_data_dir.")] if needed else []
    text = str(path)
    if not text.startswith(_HERE) and not text.endswith((".jsonl", ".ndjson")):
        message = f"{shown(text)} is not a path on this machine; datasets of a hub are not read"
        return [problem(field, "unsupported", message, "Export it as JSONL, and give the file's or folder's path.")]
    return []
