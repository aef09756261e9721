"""The envelopes that carry every fact and every request, whatever their payload."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec


class EventMetadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who and what led to an event. `causation_id` is the id of the command or event that directly caused it."""

    actor: str = "system"
    """`user:<id>`, `attempt:<id>` or `system:<service>`."""
    causation_id: UUID | None = None
    traceparent: str | None = None
    source_ip: str | None = None


class RecordedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One committed row of the log. `data` is the JSON payload exactly as stored and hashed."""

    global_position: int
    event_id: UUID
    stream: str
    """`<category>-<id>`, for example `job-0197…`."""
    stream_version: int
    """1, 2, 3 … without gaps in each stream."""
    type: str
    """`job.submitted.v1`; the only place it meets a class is `shared.contracts.catalogue`."""
    data: msgspec.Raw
    meta: EventMetadata
    correlation_id: UUID
    """The whole story this event belongs to: the job id for everything that happens because of a job."""
    recorded_at: datetime
    hash: bytes
    """SHA-256 over every stored field and the previous event's hash of the same stream."""

    @property
    def category(self) -> str:
        """The stream's kind, `job` for `job-0197…`."""
        return self.stream.partition("-")[0]


class CommandEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the owner of a stream. `command_id` makes a repeat recognisable: the same id is the same request."""

    command_id: UUID
    correlation_id: UUID
    causation_id: UUID | None = None
    actor: str = "system"
    source_ip: str | None = None
    traceparent: str | None = None
    payload: msgspec.Raw


class CommandReply(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's answer, sent after its commit.

    Either `error_code` is None and `position` is the log's position after the commit (0 if nothing was appended), or
    the rule said no: `error_code` is one of `shared.problems`, `error_detail` is safe to show.
    """

    position: int = 0
    data: dict[str, Any] = {}
    error_code: str | None = None
    error_detail: str | None = None
    error_fields: dict[str, Any] = {}
