"""Reads vendors' JSON as loosely as it must be read: a member that is missing or of another kind is empty."""

from datetime import datetime
from typing import Any, cast

Object = dict[str, Any]


def an_object(value: Any) -> Object:
    """The object, or an empty one."""
    return cast("Object", value) if isinstance(value, dict) else {}


def a_list(value: Any) -> list[Any]:
    """The list, or an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def a_text(value: Any) -> str:
    """The text, or an empty one."""
    return value if isinstance(value, str) else ""


def a_number(value: Any) -> float | None:
    """The number as a float."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def a_moment(value: Any) -> datetime | None:
    """A moment in RFC 3339, by whichever clock wrote it."""
    try:
        moment = datetime.fromisoformat(a_text(value))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
