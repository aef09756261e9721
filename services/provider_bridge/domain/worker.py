"""The worker decider: a machine of somebody's own, what it says of itself, and the one run that is its own.

Refusals: `worker_not_found`, `worker_busy` (it has a run, or takes none now), `not_assigned` (the run is not its own).
A repeat gives no events. Time and digests come in with the commands.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from services.provider_bridge.domain.worker_acts import (
    AskCancel,
    Assign,
    Begin,
    Create,
    Drain,
    Heard,
    Missed,
    Register,
    Release,
    Remove,
    Resume,
    RotateToken,
    WorkerAct,
)
from shared.contracts.job import Event
from shared.contracts.worker import (
    RunOutcome,
    WorkerAssigned,
    WorkerCameOnline,
    WorkerCreated,
    WorkerDraining,
    WorkerRegistered,
    WorkerReleased,
    WorkerRemoved,
    WorkerResumed,
    WorkerRunBegun,
    WorkerRunCancelAsked,
    WorkerStatus,
    WorkerTokenRotated,
    WorkerType,
    WorkerWentOffline,
)
from shared.problems import Rejected

# ---- state -----------------------------------------------------------------------------------------------------------


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody made this worker."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """Terminal."""

    name: str


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The run that is the worker's own."""

    attempt_id: UUID
    job_id: UUID
    epoch: int
    begun: bool = False
    """The worker has said that its trainer was started."""
    cancel_grace_s: float | None = None
    """Asked to end; None = not asked."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that was made and not removed."""

    name: str
    worker_type: WorkerType
    given_labels: dict[str, str]
    own_labels: dict[str, str] = {}
    token_sha256: str
    price_micro_usd_per_hour: int
    created_at: datetime
    registered: WorkerRegistered | None = None
    online: bool = False
    draining: bool = False
    run: Assignment | None = None
    runs_had: int = 0
    """How many runs were its own and are no longer."""

    @property
    def labels(self) -> dict[str, str]:
        """Its own labels, and over them those an administrator gave."""
        return {**self.own_labels, **self.given_labels}

    @property
    def is_spent(self) -> bool:
        """An ephemeral worker has had its one run."""
        return self.worker_type == "ephemeral" and self.runs_had > 0

    @property
    def takes_runs(self) -> bool:
        """It can be given a run now, as far as the log knows."""
        return self.online and not self.draining and not self.is_spent and self.run is None

    @property
    def status(self) -> WorkerStatus:
        """As clients see it."""
        if self.registered is None:
            return "connecting"
        if not self.online:
            return "offline"
        if self.draining:
            return "draining"
        return "busy" if self.run is not None else "idle"


WorkerState = Unknown | Worker | Removed

# ---- decisions -------------------------------------------------------------------------------------------------------


def decide(state: WorkerState, command: WorkerAct) -> Sequence[Event]:
    """The events that `command` leads to in `state`; raises Rejected when it may not happen."""
    if isinstance(command, Create):
        return _create(state, command)
    if isinstance(state, Removed) and isinstance(command, Remove):
        return []
    if not isinstance(state, Worker):
        raise Rejected("worker_not_found", "there is no such worker")
    match command:
        case RotateToken() | Drain() | Resume() | Remove():
            return _administered(state, command)
        case Register() | Heard() | Missed():
            return _heard(state, command)
        case Assign() | Begin() | AskCancel() | Release():
            return _run(state, command)
        case _:
            assert_never(command)


def _create(state: WorkerState, command: Create) -> list[Event]:
    if not isinstance(state, Unknown):
        return []
    return [
        WorkerCreated(
            name=command.name,
            worker_type=command.worker_type,
            labels=command.labels,
            token_sha256=command.token_sha256,
            price_micro_usd_per_hour=command.price_micro_usd_per_hour,
            created_at=command.at,
        )
    ]


def _administered(state: Worker, command: RotateToken | Drain | Resume | Remove) -> list[Event]:
    match command:
        case RotateToken():
            known = state.token_sha256 == command.token_sha256
            return [] if known else [WorkerTokenRotated(token_sha256=command.token_sha256, rotated_at=command.at)]
        case Drain():
            return [] if state.draining else [WorkerDraining(drained_at=command.at)]
        case Resume():
            return [WorkerResumed(resumed_at=command.at)] if state.draining else []
        case Remove():
            return _remove(state, command)
        case _:
            assert_never(command)


def _remove(state: Worker, command: Remove) -> list[Event]:
    if state.run is not None and not command.force:
        raise Rejected("worker_busy", f"{state.name} runs job {state.run.job_id}", job_id=str(state.run.job_id))
    removed = WorkerRemoved(reason=command.reason, removed_at=command.at)
    return [*([_given_up(state.run, "abandoned", command.at)] if state.run else []), removed]


def _heard(state: Worker, command: Register | Heard | Missed) -> list[Event]:
    match command:
        case Register():
            return _register(state, command)
        case Heard():
            return [] if state.online or state.registered is None else [WorkerCameOnline(at=command.at)]
        case Missed():
            missed = WorkerWentOffline(last_heard_at=command.last_heard_at, at=command.at)
            return [missed] if state.online else []
        case _:
            assert_never(command)


def _register(state: Worker, command: Register) -> list[Event]:
    said = WorkerRegistered(
        name=command.name,
        gpu_info=command.gpu_info,
        labels=command.labels,
        provider=command.provider,
        registered_at=command.at,
    )
    before = state.registered
    events: list[Event] = []
    if before is None or replace(said, registered_at=before.registered_at) != before:
        events.append(said)
    if not state.online:
        events.append(WorkerCameOnline(at=command.at))
    # A run that has begun there and that it knows nothing of any more is nobody's: its disk or its machine is new.
    if state.run is not None and state.run.begun and not is_of(state.run, command.has_job, command.has_attempt):
        events.append(_given_up(state.run, "dropped", command.at))
    return events


def is_of(run: Assignment, job_id: str | None, attempt_id: UUID | None) -> bool:
    """Whether what a worker says it has is this run."""
    return job_id == str(run.job_id) and attempt_id in {None, run.attempt_id}


def _run(state: Worker, command: Assign | Begin | AskCancel | Release) -> list[Event]:
    run = state.run if state.run is not None and state.run.attempt_id == command.attempt_id else None
    if isinstance(command, Assign):
        return [] if run is not None else _assign(state, command)
    if run is None:
        if isinstance(command, Begin):
            raise Rejected("not_assigned", "this run is not the worker's own")
        return []
    match command:
        case Begin():
            return [] if run.begun else [WorkerRunBegun(attempt_id=run.attempt_id, begun_at=command.at)]
        case AskCancel():
            if run.cancel_grace_s is not None:
                return []
            return [WorkerRunCancelAsked(attempt_id=run.attempt_id, grace_s=command.grace_s, asked_at=command.at)]
        case Release():
            return [
                WorkerReleased(
                    attempt_id=run.attempt_id,
                    outcome=command.outcome,
                    exit_code=command.exit_code,
                    released_at=command.at,
                    ended_at=command.ended_at,
                    last_words=command.last_words,
                )
            ]
        case _:
            assert_never(command)


def _assign(state: Worker, command: Assign) -> list[Event]:
    if not state.takes_runs:
        raise Rejected("worker_busy", f"{state.name} takes no run now: it is {state.status}")
    return [
        WorkerAssigned(
            attempt_id=command.attempt_id, job_id=command.job_id, epoch=command.epoch, assigned_at=command.at
        )
    ]


def _given_up(run: Assignment, outcome: RunOutcome, at: datetime) -> WorkerReleased:
    return WorkerReleased(
        attempt_id=run.attempt_id, outcome=outcome, exit_code=None, released_at=at, ended_at=at, last_words=""
    )


# ---- folding ---------------------------------------------------------------------------------------------------------


def evolve(state: WorkerState, event: Event) -> WorkerState:
    """The state after `event`; never raises."""
    if isinstance(state, Unknown):
        return _made(event) if isinstance(event, WorkerCreated) else state
    if isinstance(state, Removed):
        return state
    if isinstance(event, WorkerRemoved):
        return Removed(name=state.name)
    return _evolve_run(_evolve_worker(state, event), event)


def _made(event: WorkerCreated) -> Worker:
    return Worker(
        name=event.name,
        worker_type=event.worker_type,
        given_labels=event.labels,
        token_sha256=event.token_sha256,
        price_micro_usd_per_hour=event.price_micro_usd_per_hour,
        created_at=event.created_at,
    )


def _evolve_worker(state: Worker, event: Event) -> Worker:  # noqa: PLR0911 - a line per event
    match event:
        case WorkerRegistered():
            return replace(state, registered=event, own_labels=event.labels)
        case WorkerCameOnline():
            return replace(state, online=True)
        case WorkerWentOffline():
            return replace(state, online=False)
        case WorkerTokenRotated():
            return replace(state, token_sha256=event.token_sha256)
        case WorkerDraining():
            return replace(state, draining=True)
        case WorkerResumed():
            return replace(state, draining=False)
        case _:
            return state


def _evolve_run(state: Worker, event: Event) -> Worker:
    if isinstance(event, WorkerAssigned):
        taken = Assignment(attempt_id=event.attempt_id, job_id=event.job_id, epoch=event.epoch)
        return replace(state, run=taken) if state.run is None else state
    if not isinstance(event, WorkerRunBegun | WorkerRunCancelAsked | WorkerReleased):
        return state
    if state.run is None or state.run.attempt_id != event.attempt_id:
        return state
    match event:
        case WorkerRunBegun():
            return replace(state, run=replace(state.run, begun=True))
        case WorkerRunCancelAsked():
            return replace(state, run=replace(state.run, cancel_grace_s=event.grace_s))
        case WorkerReleased():
            return replace(state, run=None, runs_had=state.runs_had + 1)
