"""What was stored once can be read for ever: event types and their fields are only ever added.

A new event or field: `UPDATE_EVENT_CATALOGUE=1 pytest tests/architecture/test_event_catalogue.py` adds it to the file.
"""

import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import msgspec

from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.upcasts import upcast

GOLDEN = Path(__file__).with_name("event_catalogue.json")
Shapes = dict[str, dict[str, str]]


def _structs_in(annotation: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(annotation, types.GenericAlias | types.UnionType) or get_origin(annotation):
        for inner in get_args(annotation):
            yield from _structs_in(inner)
    elif isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
        for field in msgspec.structs.fields(annotation):
            yield from _structs_in(field.type)


def _fields(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {field.encode_name: "required" if field.required else "optional" for field in msgspec.structs.fields(kind)}


def current_shapes() -> Shapes:
    """Stored type, or name of a struct inside one, to its fields."""
    shapes: Shapes = {}
    for type_, kind in EVENT_TYPES.items():
        shapes[type_] = _fields(kind)
        for field in msgspec.structs.fields(kind):
            for inner in _structs_in(field.type):
                shapes[f"struct {inner.__name__}"] = _fields(inner)
    return dict(sorted(shapes.items()))


def golden_shapes() -> Shapes:
    return cast("Shapes", json.loads(GOLDEN.read_text(encoding="utf-8"))) if GOLDEN.exists() else {}


def _breaches(golden: Shapes, current: Shapes) -> Iterator[str]:
    for name, fields in golden.items():
        if name not in current:
            if name.startswith("struct ") or upcast(name, b"{}")[0] == name:
                yield f"{name} is gone: stored events of it can no longer be read"
            continue
        for field in fields.keys() - current[name].keys():
            yield f"{name}.{field} is gone"
        for field, need in current[name].items():
            if need == "required" and fields.get(field) != "required":
                yield f"{name}.{field} is required, but stored events lack it: give it a default"


def test_event_catalogue_only_grows() -> None:
    golden, current = golden_shapes(), current_shapes()
    breaches = list(_breaches(golden, current))
    assert not breaches, "\n".join(breaches)
    if os.environ.get("UPDATE_EVENT_CATALOGUE"):
        merged = {name: golden.get(name, {}) | current.get(name, {}) for name in sorted({*golden, *current})}
        GOLDEN.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
        golden = golden_shapes()
    missing = {name for name, fields in current.items() if fields.keys() - golden.get(name, {}).keys()}
    assert not missing, f"new shapes, add them with UPDATE_EVENT_CATALOGUE=1: {sorted(missing)}"


def test_removed_or_newly_required_field_is_found() -> None:
    golden: Shapes = {"job.made.v1": {"a": "required", "b": "optional"}}
    assert list(_breaches(golden, {"job.made.v1": {"a": "required", "b": "optional", "c": "optional"}})) == []
    assert list(_breaches(golden, {"job.made.v1": {"a": "required"}})) == ["job.made.v1.b is gone"]
    assert len(list(_breaches(golden, {"job.made.v1": {"a": "required", "b": "required", "c": "required"}}))) == 2
