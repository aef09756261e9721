"""Event type string -> struct: the only place where a stored name meets a class. The catalogue only grows."""

from types import UnionType
from typing import cast, get_args

import msgspec

from shared.contracts.account import AccountEvent
from shared.contracts.artifact import ArtifactEvent
from shared.contracts.attempt import AttemptEvent
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Event, JobEvent
from shared.contracts.upcasts import upcast

WRITERS: dict[str, str] = {
    "job": "scheduler",
    "attempt": "provider_bridge",
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
    **_tagged(ArtifactEvent),
    **_tagged(AccountEvent),
}

_encoder = msgspec.json.Encoder(order="deterministic")
_decoders = {name: msgspec.json.Decoder(cls) for name, cls in EVENT_TYPES.items()}


def encode(event: Event) -> bytes:
    """The JSON that is stored and hashed."""
    return _encoder.encode(event)


def decode(recorded: RecordedEvent) -> Event | None:
    """The current struct of a stored event, upcast if it is of an older version; None for a type we do not know."""
    type_, data = upcast(recorded.type, bytes(recorded.data))
    decoder = _decoders.get(type_)
    return decoder.decode(data) if decoder else None
