"""The Postgres protocol cut into frames: which events an append brings, and which durable's rows a commit holds.

The statements are known by their text, which is the product's own, so a renamed query fails here and not silently.
Everything between an append (or a COMMIT) and the server's `ReadyForQuery` is one frame: the answer.
"""

import functools
import re
import struct
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.embedded.children import REPOSITORY
from shared.eventstore.queries import QUERIES as LOG
from shared.messaging.inbox import QUERIES as INBOX
from shared.sql import load_queries
from tests.fault.links import Bytes, Frame

_APPEND = LOG.append_batch
_CLAIM = INBOX.claim_events
_COUNTS, _TYPES = 3, 5
"""Which parameters of append_batch hold the events of each command, and the types of all events."""
_FIRST_POSITION = 1
"""Which column of its answer is null when the command was refused."""
_IN_TRANSACTION = b"T"
_WRITING = re.compile(r"(?i)\b(insert\s+into|update|delete\s+from|for\s+update)\b")


@functools.cache
def writing_queries() -> dict[str, str]:
    """Text -> `<service>.<name>` of every named query of a service that writes or locks."""
    files = sorted((REPOSITORY / "services").glob("*/sql/queries.sql"))
    named = {f"{file.parts[-3]}.{name}": text for file in files for name, text in _named(file)}
    return {text: name for name, text in named.items() if _WRITING.search(text)}


def query_steps() -> list[str]:
    """`query:billing.add_entry:before` and so on."""
    return sorted(f"query:{name}:before" for name in writing_queries().values())


def _named(file: Path) -> list[tuple[str, str]]:
    queries = load_queries(file)
    return [(name, queries[name]) for name in queries]


@dataclass(slots=True)
class _Asked:
    """What the server is to answer next: `types` holds one list for each command of an append."""

    kind: str = ""
    types: list[list[str]] = field(default_factory=list[list[str]])


class PostgresTalk:
    """One session."""

    def __init__(self) -> None:
        self._statements: dict[bytes, str] = {}
        self._asked: deque[_Asked] = deque()
        self._now = _Asked()
        self._appended: list[str] = []
        """Events appended in the transaction that is open."""
        self._durable = ""
        """Whose rows the transaction that is open writes."""

    async def requests(self, source: Bytes) -> AsyncGenerator[Frame]:
        """The start-up message has no letter; every later one has, and a length that counts itself."""
        head = await source.read(4)
        if not head:
            return
        head += await source.readexactly(4 - len(head))
        yield Frame(head + await source.readexactly(struct.unpack("!i", head)[0] - 4))
        while letter := await source.read(1):
            head = await source.readexactly(4)
            body = await source.readexactly(struct.unpack("!i", head)[0] - 4)
            yield Frame(letter + head + body, self._request(letter, body))

    async def answers(self, source: Bytes) -> AsyncGenerator[Frame]:
        """Answers that matter are collected up to ReadyForQuery; the rest passes as it comes."""
        held: list[bytes] = []
        written: list[bool] = []
        failed = False
        while letter := await source.read(1):
            head = await source.readexactly(4)
            body = await source.readexactly(struct.unpack("!i", head)[0] - 4)
            held.append(letter + head + body)
            if letter == b"D" and self._asked and self._asked[0].kind == "append":
                written.append(_column(body, _FIRST_POSITION) is not None)
            failed = failed or letter == b"E"
            if letter == b"Z":
                steps = self._answered(body, written, failed=failed)
                yield Frame(b"".join(held), steps)
                held, written, failed = [], [], False
            elif not self._asked or not self._asked[0].kind:
                yield Frame(b"".join(held))
                held = []

    def _request(self, letter: bytes, body: bytes) -> tuple[str, ...]:
        match letter:
            case b"P":
                name, text = body.split(b"\0", 2)[:2]
                self._statements[name] = text.decode()
            case b"B":
                return self._bound(body)
            case b"Q":
                self._now = _Asked()
                steps = self._simple(body[:-1].decode())
                self._asked.append(self._now)
                self._now = _Asked()
                return steps
            case b"S":
                self._asked.append(self._now)
                self._now = _Asked()
            case _:
                pass
        return ()

    def _bound(self, body: bytes) -> tuple[str, ...]:
        _portal, name, rest = body.split(b"\0", 2)
        text = self._statements.get(name, "")
        if text == _APPEND:
            parameters = _parameters(rest)
            types = [value.decode() for value in _array(parameters[_TYPES])]
            counts = [int.from_bytes(value, "big") for value in _array(parameters[_COUNTS])]
            self._now = _Asked("append", _shared_out(types, counts))
            return tuple(f"append:{type_}:before" for type_ in dict.fromkeys(types))
        if text == _CLAIM:
            self._durable = _parameters(rest)[0].decode()
        query = writing_queries().get(text)
        return (f"query:{query}:before",) if query else ()

    def _simple(self, text: str) -> tuple[str, ...]:
        word = text.strip().rstrip(";").upper()
        if word == "COMMIT":
            self._now = _Asked("commit")
            rows = (f"rows:{self._durable}:before-commit",) if self._durable else ()
            return (*(f"append:{type_}:before-commit" for type_ in dict.fromkeys(self._appended)), *rows)
        if word.startswith(("BEGIN", "ROLLBACK")):
            self._appended, self._durable = [], ""
        return ()

    def _answered(self, status: bytes, written: list[bool], *, failed: bool) -> tuple[str, ...]:
        asked = self._asked.popleft() if self._asked else _Asked()
        if asked.kind == "append" and not failed:
            types = [type_ for command, done in zip(asked.types, written, strict=False) if done for type_ in command]
            if status == _IN_TRANSACTION:
                self._appended += types
                return ()
            return tuple(f"append:{type_}:committed" for type_ in dict.fromkeys(types))
        if asked.kind == "commit":
            appended, durable = self._appended, self._durable
            self._appended, self._durable = [], ""
            if not failed:
                rows = (f"rows:{durable}:committed",) if durable else ()
                return (*(f"append:{type_}:committed" for type_ in dict.fromkeys(appended)), *rows)
        return ()


def _parameters(body: bytes) -> list[bytes]:
    """The parameter values of a Bind message, behind its two names; null is empty."""
    formats = int.from_bytes(body[:2], "big")
    at = 2 + 2 * formats
    count = int.from_bytes(body[at : at + 2], "big")
    return _values(body, at + 2, count)


def _values(body: bytes, at: int, count: int) -> list[bytes]:
    values: list[bytes] = []
    for _ in range(count):
        length = int.from_bytes(body[at : at + 4], "big", signed=True)
        values.append(body[at + 4 : at + 4 + max(length, 0)])
        at += 4 + max(length, 0)
    return values


def _array(value: bytes) -> list[bytes]:
    """The elements of a one-dimensional array in binary form."""
    if int.from_bytes(value[:4], "big") == 0:
        return []
    return _values(value, 20, int.from_bytes(value[12:16], "big"))


def _column(row: bytes, number: int) -> bytes | None:
    """One column of a DataRow."""
    at = 2
    for column in range(number + 1):
        length = int.from_bytes(row[at : at + 4], "big", signed=True)
        if column == number:
            return None if length < 0 else row[at + 4 : at + 4 + length]
        at += 4 + max(length, 0)
    return None


def _shared_out(types: list[str], counts: list[int]) -> list[list[str]]:
    """The events' types, a list for each command."""
    commands: list[list[str]] = []
    at = 0
    for count in counts:
        commands.append(types[at : at + count])
        at += count
    return commands
