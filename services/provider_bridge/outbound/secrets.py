"""Where the operator keeps secrets: the environment, a file, AWS Secrets Manager, Vault, asked in this order.

A source that is set up and cannot be read is an error that names it: a secret that stands in it must not be replaced
by silence. Sources after the one that has the secret are not asked.
"""

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import yaml

from shared.settings import Secret

SECRETS_TTL_S = 60.0
BROKEN_TTL_S = 10.0
"""For so long a source that could not be read is not asked again."""
LOOKUP_S = 8.0
MAX_FILE_BYTES = 1024 * 1024
FILE_NAMES = ("secrets.json", "secrets.yaml", "secrets.yml")


class SourceBroken(Exception):  # noqa: N818 - a state of the world, not an error of the caller
    """A source of secrets is set up and cannot be read: which, why, and what to do. Shows nothing that it holds."""

    def __init__(self, source: str, message: str, advice: str) -> None:
        super().__init__(f"{source}: {message}")
        self.source = source
        self.message = message
        self.advice = advice


class SecretSource(Protocol):
    """One place that holds secrets by name."""

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    async def read(self) -> Mapping[str, Secret]:
        """Everything it holds, by `normalised` name. Raises SourceBroken."""
        ...


def normalised(name: str) -> str:
    """The one form of a secret's name: REPLICATE_API_TOKEN, replicate-api-token and replicate.api.token are one."""
    return name.strip().upper().replace("-", "_").replace(".", "_")


def by_name(source: str, values: Mapping[Any, Any]) -> dict[str, Secret]:
    """A source's values by normalised name. Raises SourceBroken for what is no text, or two values of one name."""
    found: dict[str, Secret] = {}
    for given, value in values.items():
        name = normalised(str(given))
        if not isinstance(value, str):
            raise SourceBroken(source, f"the value of {given} is no text", "Put it in quotes.")
        if found.setdefault(name, Secret(value.strip())) != value.strip():
            raise SourceBroken(source, f"{name} is there twice, with two values", "Remove one of them.")
    return {name: value for name, value in found.items() if value}


class EnvironmentSecrets:
    """The variables that this process was started with."""

    title = "the environment"

    def __init__(self, environ: Mapping[str, str]) -> None:
        exact = {name: Secret(value.strip()) for name, value in environ.items() if value.strip()}
        # The plain spelling wins over others of the same name: shells set odd ones by themselves.
        self._values = {normalised(name): value for name, value in exact.items()} | {
            name: value for name, value in exact.items() if name == normalised(name)
        }

    async def read(self) -> Mapping[str, Secret]:
        """All of them."""
        return self._values


class SecretFile:
    """A JSON or YAML file that nobody but its owner can read; the first one that is there of several.

    `required`: that there is none is an error.
    """

    title = "the secrets file"

    def __init__(self, paths: Sequence[Path], *, required: bool) -> None:
        self._paths = paths
        self._required = required

    async def read(self) -> Mapping[str, Secret]:
        """What the file holds now. Raises SourceBroken for a file that others can read, or that cannot be read."""
        for path in self._paths:
            text = _private_text(path)
            if text is not None:
                return by_name(str(path), _parsed(path, text))
        if self._required:
            raise SourceBroken(str(self._paths[0]), "there is no such file", "Correct TUNEWRIGHT_SECRETS_FILE.")
        return {}


def _private_text(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            _require_private(path, facts)
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceBroken(str(path), f"it cannot be read: {error.strerror}", "Make it readable for us.") from None
    if len(text) > MAX_FILE_BYTES:
        raise SourceBroken(str(path), f"it is larger than {MAX_FILE_BYTES} bytes", "Is it the right file?")
    return text


def _require_private(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise SourceBroken(str(path), "it is no file", "Give the path of a file.")
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise SourceBroken(str(path), f"others can read or change it (mode {mode:04o})", f"Run: chmod 600 {path}")
    if facts.st_uid not in {0, os.geteuid()}:
        raise SourceBroken(
            str(path), f"it belongs to another user ({facts.st_uid})", f"Run: chown {os.geteuid()} {path}"
        )


def _parsed(path: Path, text: bytes) -> Mapping[Any, Any]:
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise SourceBroken(str(path), f"line {error.lineno} is no JSON", "Correct it.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else "it"
        raise SourceBroken(str(path), f"{line} is no YAML", "Correct it.") from None
    except UnicodeDecodeError:
        raise SourceBroken(str(path), "it is no UTF-8 text", "Correct it.") from None
    if not isinstance(content, dict):
        raise SourceBroken(str(path), "it does not hold names with values", 'Write {"REPLICATE_API_TOKEN": "..."}.')
    return cast("dict[Any, Any]", content)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A secret, and which source had it."""

    value: Secret
    source: str


class _Reading(msgspec.Struct, frozen=True, kw_only=True):
    until: float
    values: Mapping[str, Secret] = {}
    broken: SourceBroken | None = None


class SecretChain:
    """Asks the sources in their order; remembers what each holds for a while."""

    def __init__(
        self,
        sources: Sequence[SecretSource],
        *,
        ttl_s: float = SECRETS_TTL_S,
        lookup_s: float = LOOKUP_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._ttl_s = ttl_s
        self._lookup_s = lookup_s
        self._now = now
        self._read: dict[int, _Reading] = {}
        self._turn = asyncio.Lock()

    async def find(self, name: str) -> Found | None:
        """The secret of that name, None if no source has it. Raises SourceBroken."""
        wanted = normalised(name)
        async with self._turn:
            for number, source in enumerate(self._sources):
                reading = await self._reading(number, source)
                if reading.broken is not None:
                    raise reading.broken
                if (value := reading.values.get(wanted)) is not None:
                    return Found(value=value, source=source.title)
        return None

    async def _reading(self, number: int, source: SecretSource) -> _Reading:
        known = self._read.get(number)
        if known is not None and known.until > self._now():
            return known
        try:
            async with asyncio.timeout(self._lookup_s):
                reading = _Reading(values=await source.read(), until=self._now() + self._ttl_s)
        except SourceBroken as broken:
            reading = _Reading(broken=broken, until=self._now() + BROKEN_TTL_S)
        except TimeoutError:
            late = SourceBroken(source.title, f"it did not answer within {self._lookup_s:g} s", "Is it reachable?")
            reading = _Reading(broken=late, until=self._now() + BROKEN_TTL_S)
        self._read[number] = reading
        return reading
