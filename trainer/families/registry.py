"""Which families exist, answered without importing torch."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from trainer.failures import AttemptFailed


class FamilyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `registry.json`. `objective` is that of the family's usual bases; a base's own scheduler decides."""

    title: str
    module: str
    architecture: str
    objective: str
    model_types: list[str]


def family_entries() -> dict[str, FamilyEntry]:
    """All families this build trains, by name."""
    text = Path(__file__).with_name("registry.json").read_text(encoding="utf-8")
    return msgspec.convert(json.loads(text), dict[str, FamilyEntry])


def load_family(name: str) -> Any:
    """Import the adapter of a family (this imports torch) and return its `FAMILY` object."""
    entry = family_entries().get(name)
    if entry is None:
        raise AttemptFailed("bad_config", f"{name} is not built", f"Choose one of {', '.join(family_entries())}.")
    return import_module(entry.module).FAMILY
