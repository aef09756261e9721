"""Training rows from JSONL files: five formats, found per file, every bad row named by file, line and reason.

Strings are trained as they stand; lists of messages and instructions go through the model's chat template.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from shared.contracts.training.text_datasets import RowFormat, TextDatasetSpec
from trainer.failures import AttemptFailed

SHOWN_PROBLEMS = 20
_FILE_ENDINGS = {".jsonl", ".ndjson"}
_ROLES = ("system", "user", "assistant", "tool")
_MEMBERS: dict[RowFormat, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt_completion": ("prompt", "completion"),
}
"""The members a row of each format must have; the first format that fits a row is its format."""
_KNOWN = (
    '{"text"}, {"messages"}, {"instruction", "output"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"}'
)
_ADVICE = f"A row is one JSON object per line: {_KNOWN}. Correct the rows named, or remove them."


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: str
    content: str


Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Row:
    """One example. `answers` are what is learned: one, or the chosen and the rejected one.

    With `prompt` as a string, prompt and answers are text to be joined as they stand; otherwise all are turns.
    """

    place: str
    """File name and line number."""
    prompt: str | Turns
    answers: tuple[str, ...] | tuple[Turns, ...]
    every_answer: bool = False
    """The assistant's turns in `prompt` are learned too (a whole dialogue)."""


@dataclass
class Rows:
    """What the files of one dataset hold."""

    rows: list[Row] = field(default_factory=list[Row])
    formats: dict[str, RowFormat] = field(default_factory=dict[str, RowFormat])
    """File name -> the format of its rows."""
    duplicates: int = 0


class BadRow(Exception):  # noqa: N818 -- a finding about one line, collected with the others
    """Why one line cannot be trained on."""


def read_rows(dataset: TextDatasetSpec, source: Path, method: Literal["sft", "dpo"]) -> Rows:
    """All rows of a JSONL file, or of every JSONL file below a folder, in order of file name and line.

    Raises AttemptFailed(bad_data) with the place and reason of up to twenty bad rows and the count of all.
    """
    found, problems, seen = Rows(), list[str](), set[bytes]()
    dataset_id = dataset.id
    for path in _files(dataset_id, source):
        name = path.name if source.is_file() else path.relative_to(source).as_posix()
        if dataset.row_format is not None:
            found.formats[name] = dataset.row_format
        for row in _rows_of(path, name, found, problems, method):
            digest = hashlib.sha256(repr((row.prompt, row.answers)).encode()).digest()
            found.duplicates += digest in seen
            seen.add(digest)
            found.rows.append(row)
    if problems:
        shown = "; ".join(problems[:SHOWN_PROBLEMS])
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        message = f"dataset {dataset_id}: {len(problems)} of its rows cannot be used: {shown}{more}"
        raise AttemptFailed("bad_data", message, _ADVICE)
    if not found.rows:
        raise AttemptFailed("bad_data", f"dataset {dataset_id}: {source.name} has no rows", _ADVICE)
    return found


def _files(dataset_id: str, source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        message = f"dataset {dataset_id}: there is no file or folder {source} on this machine"
        raise AttemptFailed("bad_data", message, "Upload the dataset with the job, or correct instance_data_dir.")
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in _FILE_ENDINGS and path.is_file())
    if not files:
        others = ", ".join(sorted({path.suffix or path.name for path in source.rglob("*") if path.is_file()})[:5])
        message = f"dataset {dataset_id}: no .jsonl file lies in {source.name} (found: {others or 'nothing'})"
        raise AttemptFailed("bad_data", message, _ADVICE)
    return files


def _rows_of(path: Path, name: str, found: Rows, problems: list[str], method: str) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                yield _row_of(line, place, name, found, method)
            except BadRow as reason:
                problems.append(f"{place}: {reason}")


def _row_of(line: bytes, place: str, name: str, found: Rows, method: str) -> Row:
    value = _json_object(line)
    row_format = _format_of(value)
    expected = found.formats.setdefault(name, row_format)
    if row_format != expected:
        raise BadRow(f"a {row_format} row in a file of {expected} rows; give each format a file of its own")
    _check_method(row_format, method)
    return _READERS[row_format](place, value)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRow(f"a JSON object is meant, not {_kind(value)}")
    return cast("dict[str, Any]", value)


def _format_of(value: dict[str, Any]) -> RowFormat:
    for row_format, members in _MEMBERS.items():
        if all(member in value for member in members):
            return row_format
    nearest = max(_MEMBERS, key=lambda name: sum(member in value for member in _MEMBERS[name]))
    missing = [member for member in _MEMBERS[nearest] if member not in value]
    if len(missing) < len(_MEMBERS[nearest]):
        raise BadRow(f"{' and '.join(missing)} missing")
    raise BadRow(f"its members are {', '.join(sorted(value)[:8]) or 'none'}; known are {_KNOWN}")


def _check_method(row_format: RowFormat, method: str) -> None:
    if method == "dpo" and row_format != "preference":
        raise BadRow(f"DPO needs prompt, chosen and rejected; this is a {row_format} row (training.method sft)")
    if method == "sft" and row_format == "preference":
        raise BadRow("prompt, chosen and rejected are for DPO (training.method dpo); SFT needs a completion")


def _text_row(place: str, value: dict[str, Any]) -> Row:
    return Row(place, "", (_text(value, "text"),))


def _messages_row(place: str, value: dict[str, Any]) -> Row:
    turns = _turns(value["messages"], "messages")
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRow("messages has no assistant turn to learn from")
    last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return Row(place, turns[:last], (turns[last : last + 1],), every_answer=True)


def _instruction_row(place: str, value: dict[str, Any]) -> Row:
    question = _text(value, "instruction")
    extra = value.get("input")
    if extra is not None and not isinstance(extra, str):
        raise BadRow(f"input is {_kind(extra)}, not text")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    system = value.get("system")
    turns = [Message("user", question)]
    if isinstance(system, str) and system.strip():
        turns.insert(0, Message("system", system))
    return Row(place, tuple(turns), ((Message("assistant", _text(value, "output")),),))


def _prompt_row(place: str, value: dict[str, Any], answers: tuple[str, ...]) -> Row:
    """Prompt and answers are all strings or all lists of turns."""
    kinds = {isinstance(value[name], str) for name in ("prompt", *answers)}
    if len(kinds) > 1:
        raise BadRow(f"prompt and {' and '.join(answers)} must all be text, or all lists of messages")
    if kinds == {True}:
        return Row(place, _text(value, "prompt"), tuple(_text(value, name) for name in answers))
    return Row(place, _turns(value["prompt"], "prompt"), tuple(_answer(value[name], name) for name in answers))


def _completion_row(place: str, value: dict[str, Any]) -> Row:
    return _prompt_row(place, value, ("completion",))


def _preference_row(place: str, value: dict[str, Any]) -> Row:
    row = _prompt_row(place, value, ("chosen", "rejected"))
    if row.answers[0] == row.answers[1]:
        raise BadRow("chosen and rejected are the same")
    return row


_READERS = {
    "text": _text_row,
    "messages": _messages_row,
    "instruction": _instruction_row,
    "prompt_completion": _completion_row,
    "preference": _preference_row,
}


def _text(value: dict[str, Any], name: str) -> str:
    text = value[name]
    if not isinstance(text, str):
        raise BadRow(f"{name} is {_kind(text)}, not text")
    if not text.strip():
        raise BadRow(f"{name} is empty")
    return text


def _answer(value: Any, name: str) -> Turns:
    turns = _turns(value, name)
    if any(turn.role != "assistant" for turn in turns[:1]):
        raise BadRow(f"{name}[0].role is {turns[0].role}; an answer begins with the assistant")
    return turns


def _turns(value: Any, name: str) -> Turns:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if not items:
        raise BadRow(f"{name} is {_kind(cast('object', value))}, not a list of messages")
    turns: list[Message] = []
    for index, item in enumerate(items):
        entry = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        role, content = entry.get("role"), entry.get("content")
        if role not in _ROLES:
            raise BadRow(f"{name}[{index}].role is {role!r}; known are {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise BadRow(f"{name}[{index}].content is {_kind(content)}, not text")
        if role == "assistant" and not content.strip():
            raise BadRow(f"{name}[{index}].content is empty")
        turns.append(Message(role, content))
    return tuple(turns)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return "true or false"
    return "text" if isinstance(value, str) else "an object" if isinstance(value, dict) else "a number"
