"""Values of a submitted config, whatever they are: read as a type, and shown in a message."""

from typing import Any

import msgspec

SHOWN_CHARS = 200


def shown(value: object) -> str:
    """A submitted value for a message, cut short: whoever sent it knows the rest."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or nesting without end
        return f"this {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def converted(value: object, kind: Any) -> Any:
    """The value as its field's type, read leniently. Raises ValueError with the reason, whatever the value is."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


def bare_key(given: str) -> str:
    """`--lora-rank`, `--lora_rank` and `lora_rank` are one key."""
    return given.lstrip("-").replace("-", "_")


def coerced(value: Any) -> Any:
    """Read what a string says: "true", "1e-4" and "None" are common in configs written by web forms."""
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word.lower() in {"true", "false"}:
        return word.lower() == "true"
    if word.lower() in {"none", "null", ""}:
        return None
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word
