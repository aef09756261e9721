"""One frozen struct of settings per service, read from the environment in `__main__` only.

All missing and malformed names are reported in one error.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class Secret(str):
    """A value that never shows itself in a repr, a log line or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('…')"

    def reveal(self) -> str:
        """The value itself."""
        return str.__str__(self)


class SettingsError(Exception):
    """Everything that is wrong with the environment, a line each."""


def _secret_hook(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(value)
    raise NotImplementedError(kind)


def load(kind: type[T], environ: Mapping[str, str]) -> T:
    """Builds `kind` from variables named like its fields in upper case, or raises SettingsError naming every fault.

    Field `database_url` reads DATABASE_URL. An empty variable counts as absent.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(kind):
        name = field.name.upper()
        raw = environ.get(name, "")
        if not raw:
            if field.required:
                faults.append(f"{name} is not set")
            continue
        try:
            values[field.name] = msgspec.convert(raw, field.type, strict=False, dec_hook=_secret_hook)
        except msgspec.ValidationError as error:
            faults.append(f"{name} is malformed: {error}")
    if faults:
        raise SettingsError("\n".join(faults))
    return kind(**values)
