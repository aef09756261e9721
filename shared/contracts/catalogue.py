"""Event type string -> struct: the only place where a stored name meets a class. The catalogue only grows."""

from collections.abc import Callable
from functools import partial
from types import UnionType
from typing import Union, cast, get_args

import msgspec

from shared.contracts.account import AccountEvent
from shared.contracts.artifact import ArtifactEvent
from shared.contracts.attempt import AttemptEvent
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Event, JobEvent
from shared.contracts.provider import ProviderEvent
from shared.contracts.upcasts import UPCASTS, upcast
from shared.contracts.worker import WorkerEvent

WRITERS: dict[str, str] = {
    "job": "scheduler",
    "attempt": "provider_bridge",
    "provider": "provider_bridge",
    "worker": "provider_bridge",
    "dataset": "storage",
    "artifact": "storage",
    "account": "billing",
}
"""Stream category -> the one service that may append to it; the log's grants are made from this table."""


def _tagged(union: UnionType) -> dict[str, type[Event]]:
    members = cast("tuple[type[Event], ...]", get_args(union))
    return {event_type(member): member for member in members}


def event_type(event: type[Event]) -> str:
    """The stored name of an event class."""
    return cast("str", event.__struct_config__.tag)


EVENT_TYPES: dict[str, type[Event]] = {
    **_tagged(JobEvent),
    **_tagged(AttemptEvent),
    **_tagged(ProviderEvent),
    **_tagged(WorkerEvent),
    **_tagged(ArtifactEvent),
    **_tagged(AccountEvent),
}

_encoder = msgspec.json.Encoder(order="deterministic")
_readers: dict[str, Callable[[bytes], Event]] = {
    name: msgspec.json.Decoder(cls).decode for name, cls in EVENT_TYPES.items()
}


def encode(event: Event) -> bytes:
    """The JSON that is stored and hashed."""
    return _encoder.encode(event)


_list_decoder = cast(
    "msgspec.json.Decoder[list[Event]]",  # a union made at run time is no type to the checker
    msgspec.json.Decoder(list[Union[tuple(EVENT_TYPES.values())]]),  # noqa: UP007
)


def decode(recorded: RecordedEvent) -> Event | None:
    """The current struct of a stored event, upcast if it is of an older version; None for a type we do not know."""
    return reader(recorded.type)(bytes(recorded.data))


def reader(type_: str) -> Callable[[bytes], Event | None]:
    """What makes the current struct of this stored type's JSON; one that gives None for a type we do not know."""
    found = _readers.get(type_)
    return found if found is not None and type_ not in UPCASTS else partial(_read_old, type_)


def _read_old(type_: str, data: bytes) -> Event | None:
    current, newer = upcast(type_, data)
    found = _readers.get(current)
    return found(newer) if found is not None else None


def decode_list(array: bytes) -> list[Event]:
    """The current structs of a JSON array of payloads, at once.

    Raises:
        msgspec.ValidationError: one of them is not of a current type; `reader` knows each by its stored type.
    """
    return _list_decoder.decode(array)
