"""The NATS client protocol cut into frames: commands and their answers, events and their acknowledgements."""

import re
from collections.abc import AsyncGenerator

from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.subjects import EVENTS_STREAM
from tests.fault.links import Bytes, Frame

_CARRYING = {b"PUB", b"HPUB", b"MSG", b"HMSG"}
_ACK = f"$JS.ACK.{EVENTS_STREAM}."
_TYPE = re.compile(rb'"type":"([a-z_]+\.[a-z_]+\.v\d+)"')
_PROGRESS = b"+WPI"


class NatsTalk:
    """One client's connection. Knows which inbox waits for which answer."""

    def __init__(self) -> None:
        self._commands: dict[str, str] = {}
        self._published: dict[str, str] = {}

    async def requests(self, source: Bytes) -> AsyncGenerator[Frame]:
        """PUB and HPUB are named, everything else passes."""
        while line := await source.readline():
            words = line.split()
            verb = words[0].upper() if words else b""
            if verb not in _CARRYING:
                yield Frame(line)
                continue
            payload = await source.readexactly(int(words[-1]) + 2)
            has_reply = len(words) > (4 if verb == b"HPUB" else 3)
            reply = words[2].decode() if has_reply else ""
            yield Frame(line + payload, self._sent(words[1].decode(), reply, payload[:-2]))

    async def answers(self, source: Bytes) -> AsyncGenerator[Frame]:
        """MSG and HMSG are named, everything else passes."""
        while line := await source.readline():
            words = line.split()
            verb = words[0].upper() if words else b""
            if verb not in _CARRYING:
                yield Frame(line)
                continue
            payload = await source.readexactly(int(words[-1]) + 2)
            has_reply = len(words) > (5 if verb == b"HMSG" else 4)
            reply = words[3].decode() if has_reply else ""
            yield Frame(line + payload, self._received(words[1].decode(), reply, payload))

    def _sent(self, subject: str, reply: str, payload: bytes) -> tuple[str, ...]:
        if subject.startswith("evt."):
            type_ = _event_type(payload)
            if reply:
                self._published[reply] = type_
            return (f"relay:{type_}:before-publish",) if type_ else ()
        if command := self._commands.pop(subject, None):
            return (f"command:{command}:answered",)
        if subject.startswith(_ACK) and payload != _PROGRESS:
            return (f"ack:{_durable_of(subject)}:before",)
        return ()

    def _received(self, subject: str, reply: str, payload: bytes) -> tuple[str, ...]:
        if subject.startswith("cmd."):
            command = subject.removeprefix("cmd.")
            if reply:
                self._commands[reply] = command
            return (f"command:{command}:received",)
        if type_ := self._published.pop(subject, None):
            return (f"relay:{type_}:published",)
        if subject.startswith("evt.") and reply.startswith(_ACK):
            return (f"deliver:{_durable_of(reply)}:{_event_type(payload)}",)
        return ()


def _durable_of(subject: str) -> str:
    """`$JS.ACK.EVENTS.<durable>.…`"""
    return subject.removeprefix(_ACK).partition(".")[0]


def _event_type(payload: bytes) -> str:
    """The type of the event in a message; the envelope names it before its data does."""
    found = _TYPE.search(payload)
    name = found.group(1).decode() if found else ""
    return name if name in EVENT_TYPES else ""
