"""Old stored versions -> the current struct's JSON, one pure function each. Stored events are never rewritten."""

from collections.abc import Callable

Upcast = Callable[[bytes], tuple[str, bytes]]

UPCASTS: dict[str, Upcast] = {}
"""Stored type -> function from its JSON to (newer type, newer JSON). Chained until the type is current."""


def upcast(type_: str, data: bytes) -> tuple[str, bytes]:
    """The newest (type, JSON) that a stored pair stands for."""
    while (step := UPCASTS.get(type_)) is not None:
        type_, data = step(data)
    return type_, data
