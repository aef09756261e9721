"""What a picture is called: a text file beside it, its file name, or one prompt for all."""

import re
from pathlib import Path

from shared.contracts.training.datasets import DatasetSpec


def captions_of(picture: Path, dataset: DatasetSpec) -> list[str]:
    """All captions of a picture, at least one; a training visit takes one of them. May raise OSError."""
    if dataset.caption_strategy == "instanceprompt" or dataset.only_instance_prompt:
        return [dataset.instance_prompt or ""]
    found = _written_captions(picture, dataset) if dataset.caption_strategy == "textfile" else [_from_name(picture)]
    if dataset.prepend_instance_prompt and dataset.instance_prompt:
        return [f"{dataset.instance_prompt} {caption}".strip() for caption in found]
    return found


def _written_captions(picture: Path, dataset: DatasetSpec) -> list[str]:
    path = picture.with_suffix(".txt")
    if not path.exists():
        return [""]
    text = path.read_text(encoding="utf-8-sig").strip()
    if dataset.disable_multiline_split:
        return [text]
    return [line.strip() for line in text.splitlines() if line.strip()] or [""]


def _from_name(picture: Path) -> str:
    return re.sub(r"[_\s]+", " ", picture.stem).strip()
