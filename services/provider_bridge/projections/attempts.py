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
    AttemptMachineReleased,
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
    has_machine: bool | None = None


_OUTCOMES: dict[type[Event], str] = {
    AttemptSucceeded: "succeeded",
    AttemptFailed: "failed",
    AttemptCancelled: "cancelled",
    AttemptLost: "lost",
}


def change_of(event: Event) -> Change | None:  # noqa: PLR0911 - a line per event
    """What an event changes, None if the row does not show it."""
    match event:
        case AttemptLeased():
            return Change(epoch=event.epoch, owner=event.owner)
        case AttemptStartIntended():
            return Change(phase="starting")
        case AttemptAccepted():
            return Change(phase="accepted", provider_ref=event.provider_ref, has_machine=True)
        case AttemptStarted():
            return Change(phase="running", started_at=event.started_at, has_machine=True)
        case AttemptCancelRequested():
            return Change(phase="ending")
        case AttemptSucceeded() | AttemptFailed() | AttemptCancelled() | AttemptLost():
            return Change(phase="ended", outcome=_OUTCOMES[type(event)], ended_at=event.ended_at)
        case AttemptMachineReleased():
            return Change(has_machine=False)
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
            event.quote.metering == "machine",
        )
    elif change := change_of(event):
        await connection.execute(QUERIES.change_attempt, attempt_id, *msgspec.structs.astuple(change), position)


ATTEMPTS = Projection(name="attempts", tables=("attempts",), durable=BRIDGE_ATTEMPTS, project=project)
