"""Values of any struct of the published language: every one there can be, the fullest one, the barest one.

Made from the structs' own annotations, so a new event or command is covered the day it is written.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar, cast
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from shared.contracts.job import Command

S = TypeVar("S", bound=msgspec.Struct)

BEGAN = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
IDS = [UUID(int=0x01939B70_0000_7000_8000_000000000000 + number) for number in range(4)]
"""Few, so that independent draws meet in one job, one attempt, one account."""

_texts = st.text(max_size=12)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])
_moments = st.datetimes(datetime(1971, 1, 1), datetime(2399, 1, 1), timezones=_zones)  # noqa: DTZ001 - zones are drawn


def any_of(kind: type[S]) -> st.SearchStrategy[S]:
    """Any value that the struct's annotations allow and JSON can hold."""
    return cast("st.SearchStrategy[S]", _strategy(inspect.type_info(kind)))


def _strategy(info: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one arm for each case
    match info:
        case inspect.StructType():
            built = {field.name: _strategy(field.type) for field in info.fields}
            return st.builds(info.cls, **built)
        case inspect.ListType():
            return st.lists(_strategy(info.item_type), max_size=2)
        case inspect.DictType():
            return st.dictionaries(_strategy(info.key_type), _strategy(info.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of([_strategy(one) for one in info.types])
        case inspect.LiteralType():
            return st.sampled_from(list(info.values))
        case inspect.IntType():
            return st.integers(_LEAST if info.ge is None else info.ge, _MOST if info.le is None else info.le)
        case _:
            return _PLAIN[type(info)]


_LEAST, _MOST = -(2**63), 2**63 - 1

_PLAIN: Mapping[type[inspect.Type], st.SearchStrategy[Any]] = {
    inspect.AnyType: _json,
    inspect.CustomType: _json,  # `object`: read like Any
    inspect.NoneType: st.none(),
    inspect.BoolType: st.booleans(),
    inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
    inspect.StrType: _texts,
    inspect.BytesType: st.binary(max_size=12),
    inspect.UUIDType: st.sampled_from(IDS) | st.uuids(),
    inspect.DateTimeType: _moments,
}


def is_strict(kind: type[msgspec.Struct]) -> bool:
    """Whether the struct, or one below it, refuses members that it does not know: what a person writes by hand does."""
    return _is_strict(inspect.type_info(kind))


def _is_strict(info: inspect.Type) -> bool:
    match info:
        case inspect.StructType():
            below = [field.type for field in info.fields]
            return info.forbid_unknown_fields or any(_is_strict(one) for one in below)
        case inspect.ListType():
            return _is_strict(info.item_type)
        case inspect.DictType():
            return _is_strict(info.value_type)
        case inspect.UnionType():
            return any(_is_strict(one) for one in info.types)
        case _:
            return False


# ---- one value of a kind ---------------------------------------------------------------------------------------------


def fullest(kind: type[S]) -> S:
    """Every field set, every list and dict filled, nothing at its default."""
    return cast("S", _one(inspect.type_info(kind), "value", full=True))


def barest(kind: type[S]) -> S:
    """Every list empty, None wherever it may be, defaults where there are any."""
    return cast("S", _one(inspect.type_info(kind), "value", full=False))


def _one(info: inspect.Type, name: str, *, full: bool) -> Any:  # noqa: PLR0911 - one arm for each case
    match info:
        case inspect.StructType():
            wanted = [field for field in info.fields if full or field.required]
            return info.cls(**{field.name: _one(field.type, field.name, full=full) for field in wanted})
        case inspect.ListType():
            return [_one(info.item_type, name, full=full)] if full else []
        case inspect.DictType():
            return {f"--{name}": _one(info.value_type, name, full=full)} if full else {}
        case inspect.UnionType():
            has_none = any(isinstance(one, inspect.NoneType) for one in info.types)
            if has_none and not full:
                return None
            return _one(next(one for one in info.types if not isinstance(one, inspect.NoneType)), name, full=full)
        case inspect.LiteralType():
            return sorted(info.values, key=str)[-1 if full else 0]
        case _:
            return _SAMPLES[type(info)](name, full)


_SAMPLES: Mapping[type[inspect.Type], Callable[[str, bool], Any]] = {
    inspect.AnyType: lambda name, full: {"text": name, "numbers": [1, -2.5, 1e-07], "none": None} if full else None,
    inspect.CustomType: lambda name, full: name if full else None,
    inspect.BoolType: lambda _name, full: full,
    inspect.BytesType: lambda name, full: name.encode() if full else b"",
    inspect.IntType: lambda _name, full: 9_007_199_254_740_993 if full else 0,  # more than a double can hold exactly
    inspect.FloatType: lambda _name, full: 0.1 if full else 0.0,
    inspect.StrType: lambda name, full: f'{name} "é" / \\ \n €\U0001f600' if full else "",
    inspect.UUIDType: lambda _name, full: IDS[1] if full else IDS[0],
    inspect.DateTimeType: lambda _name, full: BEGAN if full else BEGAN.replace(microsecond=0),
}


def all_commands() -> list[type[Command]]:
    """Every command there is, by its tag."""
    found: list[type[Command]] = []
    waiting: list[type[Command]] = [Command]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += [one for one in below if one.__module__.startswith("shared.contracts.")]
        waiting += below
    return sorted(set(found), key=lambda kind: str(kind.__struct_config__.tag))
