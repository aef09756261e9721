"""The short spellings that people send to a provider, completed to the full ones; the check itself is the contract's.

A config may name the base `model_name` and leave the family to be read from it. A dataloader may be one object with
the keys of other trainers (`shuffle_tags`, `keep_tokens`, `num_repeats`).
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, cast

from shared.contracts.training.values import bare_key, coerced
from trainer.failures import AttemptFailed
from trainer.families.registry import family_entries

_FAMILY_HINTS = {
    "stablediffusion3": "sd3",
    "sd3": "sd3",
    "stablediffusionxl": "sdxl",
    "sdxl": "sdxl",
    "stablediffusion": "sd1x",
    "sd15": "sd1x",
    "sd1x": "sd1x",
    "flux2": "flux2",
    "flux": "flux",
    "pixart": "pixart_sigma",
    "auraflow": "auraflow",
    "chroma": "chroma",
    "lumina": "lumina2",
    "sana": "sana",
    "zimage": "z_image",
    "qwenimage": "qwen_image",
}
"""What a base's name or its pipeline's class name contains -> the family; the first hit counts."""
_SHUFFLED_ORDERS = 4
_DATASET_ID = "dataset"


def completed_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config with its base and family named; a language model's config stays what it is."""
    names = {bare_key(key): key for key in config}
    if "model" in names or "training" in names:
        return config
    full = dict(config)
    if "model_name" in names:
        base = full.pop(names["model_name"])
        full.setdefault(names.get("pretrained_model_name_or_path", "pretrained_model_name_or_path"), base)
    base = full.get(names.get("pretrained_model_name_or_path", "pretrained_model_name_or_path"))
    if "model_family" not in names and base:
        full["model_family"] = family_of(str(base))
    if "model_type" not in names:
        full["model_type"] = "lora"
    return full


def family_of(base: str) -> str:
    """The model family that a base's own description or its name tells.

    Raises AttemptFailed(bad_config) when neither does.
    """
    described = _pipeline_class(Path(base))
    for text in (described, PurePosixPath(base).name if described else base):
        plain = re.sub(r"[^a-z0-9]", "", text.lower())
        hit = next((family for hint, family in _FAMILY_HINTS.items() if hint in plain), None)
        if hit is not None:
            return hit
    families = ", ".join(family_entries())
    message = f"input.config: the family of {base!r} is not told by its name"
    raise AttemptFailed("bad_config", message, f"Set model_family to one of {families}.")


def completed_dataloader(given: Any, folder: Path) -> list[dict[str, Any]]:
    """The dataloader as a list whose image entries lie in `folder`, the dataset that came with the job."""
    if given is None:
        given = {}
    entries = [_from_short_form(cast("dict[str, Any]", given))] if isinstance(given, dict) else given
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[Any]", entries)):
        raise AttemptFailed("bad_config", "input.dataloader: an object or a list of objects is needed", "Correct it.")
    return [_placed(cast("dict[str, Any]", entry), folder) for entry in cast("list[Any]", entries)]


def _from_short_form(given: dict[str, Any]) -> dict[str, Any]:
    """One image entry from an object that describes the whole dataset."""
    entry = {"id": _DATASET_ID, "type": "local", "dataset_type": "image", **given}
    extension = entry.get("caption_extension")
    if "caption_strategy" not in entry:
        entry["caption_strategy"] = "instanceprompt" if entry.get("instance_prompt") and not extension else "textfile"
    shuffled = coerced(entry.pop("shuffle_tags", entry.pop("shuffle_caption", False)))
    kept = coerced(entry.pop("keep_tokens", 0))
    if shuffled is True:
        shuffle = {"enable": True, "count": _SHUFFLED_ORDERS, "split_on": "comma", "position_start": kept}
        entry.setdefault("caption_shuffle", shuffle)
    passes = coerced(entry.pop("num_repeats", None))
    if isinstance(passes, int):
        entry.setdefault("repeats", max(0, passes - 1))  # ours counts the extra passes
    return entry


def _placed(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry with its folder on this machine; a relative one is meant inside the dataset that came along."""
    if coerced(entry.get("dataset_type", "image")) == "text_embeds":
        return entry
    named = entry.get("instance_data_dir")
    if not isinstance(named, str) or not named or not folder.is_dir():
        return {**entry, "instance_data_dir": str(folder)} if not named else entry
    inside = (folder / named).resolve()
    if not inside.is_relative_to(folder.resolve()) or not inside.is_dir():
        message = f"input.dataloader: instance_data_dir {named!r} is no folder of the dataset that came along"
        raise AttemptFailed("bad_config", message, "Name a folder inside the archive, or leave it out.")
    return {**entry, "instance_data_dir": str(inside)}


def _pipeline_class(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        return ""
    described: Any = json.loads(index.read_text(encoding="utf-8"))
    return str(cast("dict[str, Any]", described).get("_class_name", "")) if isinstance(described, dict) else ""
