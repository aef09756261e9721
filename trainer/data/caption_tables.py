"""Captions that stand in a table: parquet, JSON lines, CSV or TSV, one row per picture."""

import csv
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from shared.contracts.training.datasets import CaptionTable
from trainer.failures import AttemptFailed

_ROWS_AT_A_TIME = 4096


def rows_by_name(table: CaptionTable, folder: Path, dataset_id: str) -> dict[str, list[str]]:
    """The captions by the name in the filename column; an empty list where both caption columns are empty.

    Raises AttemptFailed(bad_data) naming the file, and the line or the column, that cannot be read.
    """
    path = _located(table, folder, dataset_id)
    wanted = [table.filename_column, table.caption_column, table.fallback_caption_column]
    try:
        found: dict[str, list[str]] = {}
        for row in _rows(path, [name for name in wanted if name is not None]):
            captions = _texts(row.get(table.caption_column))
            if not captions and table.fallback_caption_column is not None:
                captions = _texts(row.get(table.fallback_caption_column))
            found[str(row.get(table.filename_column))] = captions
    except (OSError, ValueError) as error:
        message = f"dataset {dataset_id}: the caption table {path.name} cannot be read: {error}"
        raise AttemptFailed("bad_data", message, "Correct the table or its column names, and submit again.") from error
    return found


def _located(table: CaptionTable, folder: Path, dataset_id: str) -> Path:
    """The table as given, or below the dataset's folder under its path or its name."""
    given = Path(table.path).expanduser()
    for path in (folder / given, folder / given.name):
        if path.is_file():
            return path
    message = f"dataset {dataset_id}: there is no caption table {table.path}"
    raise AttemptFailed("bad_data", message, "Put the table into the dataset's folder, and name it in parquet.path.")


def _texts(value: Any) -> list[str]:
    """A cell as captions: one text, or a list of them; what is empty is left out."""
    cells = cast("list[object]", value) if isinstance(value, list) else [value]
    return [text for cell in cells if cell is not None and (text := str(cell).strip())]


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif suffix in {".jsonl", ".ndjson"}:
        yield from _json_rows(path, columns)
    elif suffix in {".csv", ".tsv"}:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
            _check_columns(columns, list(reader.fieldnames or []))
            try:
                yield from reader
            except csv.Error as error:
                message = f"line {reader.line_num}: {error}"
                raise ValueError(message) from error
    else:
        message = "it is no .parquet, .jsonl, .csv or .tsv file"
        raise ValueError(message)


def _json_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"line {number} is not JSON: {error}"
                raise ValueError(message) from error
            if not isinstance(row, dict) or columns[0] not in row:
                message = f"line {number} is no object with a member {columns[0]!r}"
                raise ValueError(message)
            yield row


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    # Imported here: only datasets with such a table need the library.
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(columns, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _check_columns(wanted: list[str], present: list[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        message = f"it has no column {', '.join(missing)}; it has {', '.join(present) or 'none'}"
        raise ValueError(message)
