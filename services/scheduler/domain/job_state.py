"""What a job's past adds up to: one struct per phase, holding what `decide` needs and no more.

`evolve` never raises; an event that does not apply in a phase leaves the state as it is. Imported by the job decider,
the queue and the process of this service, and by nobody else. The states are immutable and form no cycle, so
the garbage collector need not look at them (`gc=False`): a fold over a long past makes millions.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec.structs import replace

from shared.contracts.job import (
    Checkpoint,
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDeleted,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobLateFact,
    JobPlaced,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
)
from shared.contracts.offers import AUTO

FactKey = tuple[str, UUID | None]
"""A fact's words and its attempt: the same fact told twice has the same key."""

Seen = tuple[FactKey, ...]
"""In the order of the log. Few and seldom asked for, but made anew by most events: a tuple costs less than a set."""

Outcome = Literal["completed", "failed", "cancelled"]

DATASETS_PACKED = "datasets packed"
FUNDS_RESERVED = "funds reserved"
ATTEMPT_PLACED = "attempt placed"
ATTEMPT_STARTED = "attempt started"
ATTEMPT_FAILED = "attempt failed"
ATTEMPT_CANCELLED = "attempt cancelled"
TRAINING_FINISHED = "training finished"


def checkpoint_saved(step: int) -> str:
    """The words of a stored checkpoint as a fact."""
    return f"checkpoint {step} saved"


class Absent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Nothing was submitted under this id."""


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What stays the same for the job's whole life."""

    provider: str
    max_attempts: int
    has_datasets: bool

    @property
    def anywhere(self) -> bool:
        """Whether the scheduler chooses the provider."""
        return self.provider == AUTO


class Preparing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Accepted; waits for its data (if it has any) and for its funds, which come in any order."""

    order: Order
    packed: bool = False
    funded: bool = False
    seen: Seen = ()


class Queued(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Waits for a slot. `attempts` counts the attempts that were made, `spared` those of them that do not count.

    `wait_reason` is the last one explained.
    """

    order: Order
    attempts: int
    spared: int
    checkpoint: Checkpoint | None
    not_before: datetime | None
    wait_reason: str | None
    seen: Seen


class Dispatched(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Holds a slot; its attempt has not said hello. `cancel_reason` is set once it was asked to end."""

    order: Order
    attempts: int
    spared: int
    attempt_id: UUID
    resumed_step: int
    """Where the attempt began."""
    checkpoint: Checkpoint | None
    cancel_reason: str | None
    seen: Seen


class Running(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Holds a slot; its attempt trains."""

    order: Order
    attempts: int
    spared: int
    attempt_id: UUID
    resumed_step: int
    """Where the attempt began."""
    checkpoint: Checkpoint | None
    cancel_reason: str | None
    seen: Seen


class Completing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The model is trained; what arrived of it is being confirmed. The slot is free again."""

    order: Order
    undelivered: tuple[str, ...]
    seen: Seen


class Ended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Terminal. `seen` tells a fact that is already written down from one that comes late."""

    order: Order
    outcome: Outcome
    deleted: bool
    seen: Seen


Job = Absent | Preparing | Queued | Dispatched | Running | Completing | Ended
Live = Preparing | Queued | Dispatched | Running | Completing
Holding = Dispatched | Running
"""The phases that hold a slot."""


def evolve(state: Job, event: Event) -> Job:
    """The state after one more event."""
    step = _STEPS[type(state)].get(type(event))
    return state if step is None else step(state, event)


S = TypeVar("S", bound=Job)
E = TypeVar("E", bound=Event)
Step = Callable[[S, E], Job]

_STEPS: dict[type[Job], dict[type[Event], Callable[[Any, Any], Job]]] = {phase: {} for phase in get_args(Job)}
"""What an event does in a phase; nothing where there is no entry. A table: a ladder of `case`s asks every class."""


def _on(event: type[E], *phases: type[S]) -> Callable[[Step[S, E]], Step[S, E]]:
    """Enters the function below it in the table."""

    def enter(step: Step[S, E]) -> Step[S, E]:
        for phase in phases:
            _STEPS[phase][event] = step
        return step

    return enter


# ---- before the queue ------------------------------------------------------------------------------------------------


@_on(JobSubmitted, Absent)
def _submitted(_state: Absent, event: JobSubmitted) -> Preparing:
    order = Order(provider=event.provider, max_attempts=event.max_attempts, has_datasets=bool(event.datasets))
    return Preparing(order=order, packed=not event.datasets)


@_on(JobDatasetsPacked, Preparing)
def _packed(state: Preparing, _event: JobDatasetsPacked) -> Preparing:
    return replace(state, packed=True, seen=(*state.seen, (DATASETS_PACKED, None)))


@_on(JobFundsReserved, Preparing)
def _funded(state: Preparing, _event: JobFundsReserved) -> Preparing:
    return replace(state, funded=True, seen=(*state.seen, (FUNDS_RESERVED, None)))


@_on(JobQueued, Preparing)
def _first_queued(state: Preparing, event: JobQueued) -> Queued:
    return Queued(
        order=state.order,
        attempts=0,
        spared=0,
        checkpoint=None,
        not_before=event.not_before,
        wait_reason=None,
        seen=state.seen,
    )


# ---- in the queue ----------------------------------------------------------------------------------------------------


@_on(JobWaitExplained, Queued)
def _explained(state: Queued, event: JobWaitExplained) -> Queued:
    return replace(state, wait_reason=event.reason)


@_on(JobDispatched, Queued)
def _dispatched(state: Queued, event: JobDispatched) -> Dispatched:
    return Dispatched(
        order=state.order,
        attempts=event.attempt_number,
        spared=state.spared,
        attempt_id=event.attempt_id,
        resumed_step=state.checkpoint.step if state.checkpoint else 0,
        checkpoint=state.checkpoint,
        cancel_reason=None,
        seen=state.seen,
    )


@_on(JobPlaced, Dispatched)
def _placed(state: Dispatched, event: JobPlaced) -> Dispatched:
    return replace(state, seen=(*state.seen, (ATTEMPT_PLACED, event.attempt_id)))


# ---- in a slot -------------------------------------------------------------------------------------------------------


@_on(JobStarted, Dispatched, Running)
def _started(state: Holding, event: JobStarted) -> Running:
    return Running(
        order=state.order,
        attempts=state.attempts,
        spared=state.spared,
        attempt_id=state.attempt_id,
        resumed_step=state.resumed_step,
        checkpoint=state.checkpoint,
        cancel_reason=state.cancel_reason,
        seen=(*state.seen, (ATTEMPT_STARTED, event.attempt_id)),
    )


@_on(JobCheckpointed, Dispatched, Running)
def _checkpointed(state: Holding, event: JobCheckpointed) -> Holding:
    key = (checkpoint_saved(event.checkpoint.step), event.attempt_id)
    return replace(state, checkpoint=event.checkpoint, seen=(*state.seen, key))


@_on(JobCancelRequested, Dispatched, Running)
def _cancel_requested(state: Holding, event: JobCancelRequested) -> Holding:
    return replace(state, cancel_reason=event.reason)


@_on(JobAttemptFailed, Dispatched, Running)
def _attempt_failed(state: Holding, event: JobAttemptFailed) -> Holding:
    spared = state.spared + event.spared
    return replace(state, spared=spared, seen=(*state.seen, (ATTEMPT_FAILED, event.attempt_id)))


@_on(JobQueued, Dispatched, Running)
def _queued_again(state: Holding, event: JobQueued) -> Queued:
    return Queued(
        order=state.order,
        attempts=state.attempts,
        spared=state.spared,
        checkpoint=state.checkpoint,
        not_before=event.not_before,
        wait_reason=None,
        seen=state.seen,
    )


@_on(JobTrainingFinished, Dispatched, Running)
def _trained(state: Holding, event: JobTrainingFinished) -> Completing:
    key = (TRAINING_FINISHED, event.attempt_id)
    return Completing(order=state.order, undelivered=tuple(event.undelivered), seen=(*state.seen, key))


# ---- the end, in any phase -------------------------------------------------------------------------------------------


@_on(JobCompleted, Preparing, Queued, Dispatched, Running, Completing)
def _completed(state: Live, _event: JobCompleted) -> Ended:
    return _ended(state, "completed", ())


@_on(JobFailed, Preparing, Queued, Dispatched, Running, Completing)
def _failed(state: Live, event: JobFailed) -> Ended:
    return _ended(state, "failed", ((event.kind, None),))


@_on(JobCancelled, Preparing, Queued, Dispatched, Running, Completing)
def _cancelled(state: Live, _event: JobCancelled) -> Ended:
    facts = ((ATTEMPT_CANCELLED, state.attempt_id),) if isinstance(state, Dispatched | Running) else ()
    return _ended(state, "cancelled", facts)


def _ended(state: Live, outcome: Outcome, facts: Seen) -> Ended:
    return Ended(order=state.order, outcome=outcome, deleted=False, seen=state.seen + facts)


@_on(JobLateFact, Ended)
def _late(state: Ended, event: JobLateFact) -> Ended:
    return replace(state, seen=(*state.seen, (event.fact, event.attempt_id)))


@_on(JobDeleted, Ended)
def _deleted(state: Ended, _event: JobDeleted) -> Ended:
    return replace(state, deleted=True)
