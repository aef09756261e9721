"""Which facts of attempts and jobs move money. Pure; `handlers.py` carries it out.

Both entries to this process, the event stream and the `SettleJob` command, lead through `due_usage`: a job is never
settled before everything that its ended attempts used is metered, in whatever order the messages came.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec

from shared.contracts.account import MeterUsage
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptFailed,
    AttemptLost,
    AttemptRequested,
    AttemptSucceeded,
)
from shared.contracts.job import Event, JobCancelled, JobCompleted, JobFailed


class AttemptEvents(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's stream."""

    attempt_id: UUID
    events: Sequence[Event]


def ends_attempt(event: Event) -> bool:
    """Whether the event says how many seconds an attempt used."""
    return isinstance(event, AttemptSucceeded | AttemptFailed | AttemptCancelled | AttemptLost)


def ends_job(event: Event) -> bool:
    """Whether the job is settled on this event."""
    return isinstance(event, JobCompleted | JobFailed | JobCancelled)


def due_usage(attempts: Iterable[AttemptEvents]) -> list[MeterUsage]:
    """The usage of each attempt that has ended, at the price quoted when it was requested."""
    usages = [_usage(attempt) for attempt in attempts]
    return [usage for usage in usages if usage is not None]


def _usage(attempt: AttemptEvents) -> MeterUsage | None:
    requested: AttemptRequested | None = None
    for event in attempt.events:
        match event:
            case AttemptRequested():
                requested = event
            case AttemptSucceeded() | AttemptFailed() | AttemptCancelled() | AttemptLost() if requested is not None:
                return MeterUsage(
                    job_id=requested.job_id,
                    attempt_id=attempt.attempt_id,
                    seconds=event.billed_seconds,
                    price_micro_usd_per_hour=requested.quote.price_micro_usd_per_hour,
                )
            case _:
                continue
    return None
