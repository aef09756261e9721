"""Secrets have no place in a submitted config: it is kept in the append-only log for ever."""

import re
from typing import Any, cast

import msgspec

from shared.contracts.training.problems import FieldProblem
from shared.contracts.training.values import bare_key, coerced

ADVICE = (
    "Set HF_TOKEN (or the provider's credentials) on the machine that trains; a config is kept in the log for ever."
)
FREE_NAMES = frozenset({"user_prompt_library"})
"""Objects whose keys are names that the user made up."""
_SECRET = re.compile(
    r"(?:^|_)(?:tokens?|secrets?|passw(?:or)?d|passphrase|auth|authorization|credentials?|bearer"
    r"|(?:api|access|secret|private)_?keys?)(?:_|$)"
)
_COUNT = re.compile(r"(?:max|min|num)_(?:\w+_)?tokens")
"""Numbers of a language model's tokens, which are no secrets: `max_new_tokens`."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
MAX_DEPTH = 32


def secret_problems(config: dict[str, Any], dataloader: list[dict[str, Any]]) -> list[FieldProblem]:
    """One problem for each key named like a secret that holds something; no message repeats a value."""
    fields = _secret_fields(config, "", 0)
    for index, entry in enumerate(dataloader):
        fields.extend(_secret_fields(entry, f"dataloader[{index}].", 0))
    message = "a secret may not be part of a config"
    return [FieldProblem(field=field, code="secret_in_config", message=message, advice=ADVICE) for field in fields]


def is_secret_name(key: str) -> bool:
    """Whether a key is named like a secret, in any spelling: `--hub-token`, `apiKey`, `aws_secret_access_key`."""
    name = _CAMEL.sub("_", bare_key(key)).lower()
    return _SECRET.search(name) is not None and _COUNT.fullmatch(name) is None


def _secret_fields(value: Any, place: str, depth: int) -> list[str]:
    """Paths of filled keys with a secret's name, in objects, lists, and JSON that is written as a string."""
    value = _unpacked(value)
    if depth > MAX_DEPTH:
        return []
    fields: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            fields.extend(_secret_fields(item, f"{place.removesuffix('.')}[{index}].", depth + 1))
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            if is_secret_name(key) and _holds_something(item):
                fields.append(f"{place}{key}")
            elif bare_key(key) not in FREE_NAMES:
                fields.extend(_secret_fields(item, f"{place}{key}.", depth + 1))
    return fields


def _unpacked(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _holds_something(value: Any) -> bool:
    """A switch (`use_auth_token: true`), None and what is empty hold no secret."""
    return not isinstance(coerced(value), bool | None) and value not in ({}, [])
