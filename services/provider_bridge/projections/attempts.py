"""One row per attempt, folded from `attempt` events. It may be behind the log: whoever acts folds the stream first."""

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.queries import QUERIES
from shared.contracts import catalogue
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptFailed,
    AttemptLeased,
    AttemptLost,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
)
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Event
from shared.contracts.subjects import BRIDGE_ATTEMPTS
from shared.projection import Projection


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one event changes of a row; None = nothing."""

    phase: str | None = None
    epoch: int | None = None
    owner: str | None = None
    provider_ref: str | None = None
    outcome: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


def change_of(event: Event) -> Change | None:  # noqa: PLR0911 - a line per event
    """What an event changes, None if the row does not show it."""
    match event:
        case AttemptLeased():
            return Change(epoch=event.epoch, owner=event.owner)
        case AttemptStartIntended():
            return Change(phase="starting")
        case AttemptAccepted():
            return Change(phase="accepted", provider_ref=event.provider_ref)
        case AttemptStarted():
            return Change(phase="running", started_at=event.started_at)
        case AttemptCancelRequested():
            return Change(phase="ending")
        case AttemptSucceeded():
            return Change(phase="ended", outcome="succeeded", ended_at=event.ended_at)
        case AttemptFailed():
            return Change(phase="ended", outcome="failed", ended_at=event.ended_at)
        case AttemptCancelled():
            return Change(phase="ended", outcome="cancelled", ended_at=event.ended_at)
        case AttemptLost():
            return Change(phase="ended", outcome="lost", ended_at=event.ended_at)
        case _:
            return None


async def project(connection: asyncpg.Connection, recorded: RecordedEvent) -> None:
    """Writes what one event says of its attempt."""
    event = catalogue.decode(recorded)
    if event is None:
        return
    attempt_id = UUID(recorded.stream.partition("-")[2])
    position = recorded.global_position
    if isinstance(event, AttemptRequested):
        await connection.execute(
            QUERIES.insert_attempt,
            attempt_id,
            event.job_id,
            event.attempt_number,
            event.provider,
            event.requested_at,
            position,
        )
    elif change := change_of(event):
        await connection.execute(QUERIES.change_attempt, attempt_id, *msgspec.structs.astuple(change), position)


ATTEMPTS = Projection(name="attempts", tables=("attempts",), durable=BRIDGE_ATTEMPTS, project=project)
