"""Which facts of attempts and jobs move money. Pure; `handlers.py` carries it out.

Both entries to this process, the event stream and the `SettleJob` command, lead through `due_usage`: a job is never
settled before everything that its ended attempts used is metered, in whatever order the messages came.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID, uuid5

import msgspec

from shared.contracts.account import MeterUsage
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptFailed,
    AttemptLost,
    AttemptMachineReleased,
    AttemptRequested,
    AttemptSucceeded,
)
from shared.contracts.job import Event, JobCancelled, JobCompleted, JobFailed
from shared.contracts.provider import ProviderOrphanEnded


class AttemptEvents(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's stream."""

    attempt_id: UUID
    events: Sequence[Event]


def ends_attempt(event: Event) -> bool:
    """Whether the event may say how many seconds an attempt used."""
    return isinstance(event, AttemptSucceeded | AttemptFailed | AttemptCancelled | AttemptLost | AttemptMachineReleased)


def ends_job(event: Event) -> bool:
    """Whether the job is settled on this event."""
    return isinstance(event, JobCompleted | JobFailed | JobCancelled)


def due_usage(attempts: Iterable[AttemptEvents]) -> list[MeterUsage]:
    """The usage of each attempt that has ended, at the price quoted when it was requested."""
    usages = [_usage(attempt) for attempt in attempts]
    return [usage for usage in usages if usage is not None]


def _usage(attempt: AttemptEvents) -> MeterUsage | None:
    """None while it is not known. Where machines are paid for, they are metered until they are gone."""
    requested: AttemptRequested | None = None
    for event in attempt.events:
        if isinstance(event, AttemptRequested):
            requested = event
        seconds = None if requested is None else _seconds(requested, event)
        if requested is not None and seconds is not None:
            return MeterUsage(
                job_id=requested.job_id,
                attempt_id=attempt.attempt_id,
                seconds=seconds,
                price_micro_usd_per_hour=requested.quote.price_micro_usd_per_hour,
            )
    return None


def _seconds(requested: AttemptRequested, event: Event) -> int | None:
    is_machine = requested.quote.metering == "machine"
    match event:
        case AttemptMachineReleased() if is_machine:
            return event.seconds
        case AttemptSucceeded() | AttemptFailed() | AttemptCancelled() | AttemptLost() if not is_machine:
            return event.billed_seconds
        case _:
            return None


def orphan_usage(event: ProviderOrphanEnded) -> MeterUsage | None:
    """What a machine cost that was not its attempt's own; None for one that belongs to no job we know of.

    It counts as an attempt of its own: an id made from its name keeps it from being metered twice.
    """
    if event.job_id is None:
        return None
    return MeterUsage(
        job_id=event.job_id,
        attempt_id=uuid5(event.attempt_id, f"{event.provider} {event.ref}"),
        seconds=event.seconds,
        price_micro_usd_per_hour=event.price_micro_usd_per_hour,
    )
