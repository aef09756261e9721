"""What a picture is called: a text file beside it, its file name, a row of a table, or one prompt for all."""

import random
import re
from pathlib import Path

from shared.contracts.training.datasets import CaptionShuffle, CaptionTable, DatasetSpec
from trainer.data.caption_tables import rows_by_name

_SEPARATORS = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}


class MissingCaption(Exception):  # noqa: N818 -- an observation about a dataset
    """A picture has no caption where the dataset says that it has one. The text is the reason."""


class Captions:
    """The captions of one dataset's pictures. A table is read once. May raise AttemptFailed(bad_data) for it."""

    def __init__(self, dataset: DatasetSpec, folder: Path, seed: int) -> None:
        self._dataset, self._folder, self._seed = dataset, folder, seed
        uses_table = dataset.caption_strategy == "parquet" and not dataset.only_instance_prompt
        self._table = dataset.parquet if uses_table else None
        self._rows = rows_by_name(self._table, folder, dataset.id) if self._table is not None else {}

    def of(self, picture: Path) -> list[str]:
        """All captions of a picture, at least one; a training visit takes one. Raises MissingCaption or OSError."""
        dataset = self._dataset
        if dataset.caption_strategy == "instanceprompt" or dataset.only_instance_prompt:
            return [dataset.instance_prompt or ""]
        if dataset.caption_strategy == "textfile":
            found = self._written(picture)
        elif self._table is not None:
            found = self._listed(picture, self._table)
        else:
            found = [re.sub(r"[_\s]+", " ", picture.stem).strip()]
        if dataset.prepend_instance_prompt and dataset.instance_prompt:
            found = [f"{dataset.instance_prompt} {caption}".strip() for caption in found]
        if dataset.caption_shuffle is None:
            return found
        return [order for caption in found for order in orders_of(caption, dataset.caption_shuffle, self._seed)]

    def _written(self, picture: Path) -> list[str]:
        path = picture.with_suffix(self._dataset.caption_extension)
        if not path.exists():
            message = f"there is no {path.name} beside it"
            raise MissingCaption(message)
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            message = f"{path.name} is not UTF-8 text"
            raise MissingCaption(message) from error
        if not text:
            message = f"{path.name} is empty"
            raise MissingCaption(message)
        return self._lines(text)

    def _listed(self, picture: Path, table: CaptionTable) -> list[str]:
        relative = picture.relative_to(self._folder)
        names = (relative.as_posix(), relative.name)
        if not table.identifier_includes_extension:
            names = (relative.with_suffix("").as_posix(), relative.stem)
        row = next((self._rows[name] for name in names if name in self._rows), None)
        if row is None:
            message = f"no row of {table.path} has {names[-1]!r} as its {table.filename_column}"
            raise MissingCaption(message)
        if not row:
            message = f"its row of {table.path} has an empty {table.caption_column}"
            raise MissingCaption(message)
        return [line for caption in row for line in self._lines(caption)]

    def _lines(self, text: str) -> list[str]:
        if self._dataset.disable_multiline_split:
            return [text]
        return [line.strip() for line in text.splitlines() if line.strip()]


def orders_of(caption: str, shuffle: CaptionShuffle, seed: int) -> list[str]:
    """The caption and other orders of its tags, a pure function of caption, settings and seed.

    The first `position_start` tags keep their place. A caption with fewer than two tags to move stays as it is.
    """
    splitter, joiner = _SEPARATORS[shuffle.split_on]
    tags = [tag.strip() for tag in caption.split(splitter) if tag.strip()]
    kept, moved = tags[: shuffle.position_start], tags[shuffle.position_start :]
    if len(moved) < 2:  # noqa: PLR2004 -- one tag has one order
        return [caption]
    chance = random.Random(f"{shuffle.seed if shuffle.seed is not None else seed}/{caption}")  # noqa: S311 -- repeatable
    orders = [joiner.join([*kept, *chance.sample(moved, len(moved))]) for _ in range(shuffle.count)]
    return list(dict.fromkeys([caption, *orders] if shuffle.include_original else orders))
