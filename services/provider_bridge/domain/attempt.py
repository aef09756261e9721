"""The attempt decider: one run at one provider, from the request to an end that is never left.

Refusals: `stale_epoch` (another lease owns the attempt), `invalid_job_state` (the phase does not allow it),
`not_found`, `validation_error`. A repeat gives no events. Time runs in commands only.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from services.provider_bridge.domain.attempt_commands import (
    Ask,
    AttemptCommand,
    Cancel,
    Exited,
    FencedCommand,
    Gone,
    IntendStart,
    NeverStarted,
    NoteWebhook,
    RecordAccepted,
    RecordObserved,
    RecordReleased,
    RecordStartRefused,
    RecordWord,
    Report,
    Request,
    StillRunning,
    TakeLease,
)
from services.provider_bridge.domain.attempt_reports import billed_seconds, reported
from services.provider_bridge.domain.attempt_states import (
    Absent,
    Accepted,
    AttemptState,
    Ended,
    Ending,
    Forestalled,
    Requested,
    Run,
    Running,
    Starting,
    provider_ref_of,
    run_of,
)
from services.provider_bridge.domain.exits import meaning_of
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptCommandAsked,
    AttemptFailed,
    AttemptLeased,
    AttemptLost,
    AttemptMachineReleased,
    AttemptRequested,
    AttemptStartIntended,
    AttemptWebhookReceived,
    AttemptWordUnknown,
)
from shared.contracts.job import Event
from shared.contracts.run import ExitCode
from shared.problems import Rejected

MAX_WEBHOOKS = 1000
"""Of one attempt that are written down; what comes after that is looked into all the same."""


def decide(state: AttemptState, command: AttemptCommand) -> Sequence[Event]:
    """The events that `command` leads to in `state`; raises Rejected when it may not happen."""
    match command:
        case Request():
            return _request(state, command)
        case Cancel():
            return _cancel(state, command)
        case Ask():
            return _ask(state, command)
        case Report():
            return reported(state, command.command)
        case NoteWebhook():
            return _note_webhook(state, command)
        case _:
            return _fenced(state, command)


# ---- from outside ----------------------------------------------------------------------------------------------------


def _request(state: AttemptState, command: Request) -> list[Event]:
    if not isinstance(state, Absent):
        return []
    asked = command.command
    return [
        AttemptRequested(
            job_id=asked.job_id,
            attempt_number=asked.attempt_number,
            provider=asked.provider,
            quote=command.quote,
            config=asked.config,
            dataloader=asked.dataloader,
            datasets=asked.datasets,
            resume=asked.resume,
            requested_at=command.at,
            user_id=asked.user_id,
            max_run_s=asked.max_run_s,
        )
    ]


def _cancel(state: AttemptState, command: Cancel) -> list[Event]:
    asked = AttemptCancelRequested(requested_at=command.at, reason=command.command.reason)
    match state:
        case Absent() if command.command.job_id is None:
            raise Rejected("not_found", "there is no such attempt")
        case Absent() | Requested():  # no start was intended, and none can be intended after this: it is gone already
            return [asked, AttemptCancelled(ended_at=command.at, billed_seconds=0)]
        case Starting() | Accepted() | Running():
            return [asked]
        case Ending() | Ended() | Forestalled():
            return []
        case _:
            assert_never(state)


def _ask(state: AttemptState, command: Ask) -> list[Event]:
    asked = command.command
    if isinstance(state, Absent):
        raise Rejected("not_found", "there is no such attempt")
    if not isinstance(state, Running):
        raise Rejected("invalid_job_state", "no trainer of this job is running that could be asked")
    if asked.command_id in state.asked:
        return []
    return [AttemptCommandAsked(command_id=asked.command_id, name=asked.name, asked_at=command.at)]


def _note_webhook(state: AttemptState, command: NoteWebhook) -> list[Event]:
    if isinstance(state, Absent | Forestalled):
        raise Rejected("not_found", "there is no such attempt")
    known = run_of(state).webhooks
    if command.webhook_id in known or len(known) >= MAX_WEBHOOKS:
        return []
    return [AttemptWebhookReceived(webhook_id=command.webhook_id, word=command.word, received_at=command.at)]


# ---- from the bridge, under a lease ----------------------------------------------------------------------------------


def _fenced(state: AttemptState, command: FencedCommand) -> list[Event]:
    if isinstance(state, Absent | Forestalled):
        raise Rejected("not_found", "there is no such attempt")
    if isinstance(command, TakeLease):
        return _take_lease(state, command)
    epoch = run_of(state).epoch
    if command.epoch != epoch or epoch == 0:  # 0 = never leased, owned by nobody
        raise Rejected("stale_epoch", f"epoch {command.epoch} is not the attempt's present one, {epoch}", epoch=epoch)
    if isinstance(command, RecordWord):
        seen = AttemptWordUnknown(word=command.word, seen_at=command.at)
        return [] if command.word in run_of(state).words else [seen]
    if isinstance(state, Ended):
        return _after_the_end(state, command)
    return _before_the_end(state, command)


def _after_the_end(state: Ended, command: FencedCommand) -> list[Event]:
    match command:
        case RecordReleased():
            return _released(state, command) if state.owes_release else []
        case RecordAccepted() if state.owes_release and provider_ref_of(state.run) is None:
            return [_acceptance(command)]
        case _:
            return []


def _before_the_end(state: Run | Ending, command: FencedCommand) -> list[Event]:
    match command:
        case IntendStart():
            return _intend_start(state, command)
        case RecordAccepted():
            return _accepted(run_of(state), command)
        case RecordStartRefused():
            return _start_refused(state, command)
        case RecordObserved():
            return _observed(state, command)
        case RecordReleased():
            raise Rejected("invalid_job_state", "a machine is released after its attempt has ended")
        case _:
            raise AssertionError(command)  # leases and words were decided before


def _released(state: Ended, command: RecordReleased) -> list[Event]:
    run = state.run
    since = command.started_at or run.intended_at or state.ended_at
    if isinstance(run, Running):
        since = min(since, run.started_at)  # no trainer says hello before its machine is there
    started_at = min(since, command.ended_at)
    measured_s = math.ceil((command.ended_at - started_at).total_seconds())
    counted = command.billed_s is not None
    return [
        AttemptMachineReleased(
            provider_ref=command.provider_ref,
            started_at=started_at,
            ended_at=command.ended_at,
            seconds=measured_s if command.billed_s is None else max(0, math.ceil(command.billed_s)),
            price_micro_usd_per_hour=run.request.quote.price_micro_usd_per_hour,
            basis="provider" if counted else "measured",
        )
    ]


def _take_lease(state: Run | Ending | Ended, command: TakeLease) -> list[Event]:
    run = run_of(state)
    if command.epoch == run.epoch and command.owner == run.owner:
        return []
    if command.epoch <= run.epoch:
        raise Rejected("stale_epoch", f"epoch {command.epoch} was taken already", epoch=run.epoch)
    if isinstance(state, Ended) and not state.owes_release:
        raise Rejected("invalid_job_state", "the attempt has ended; there is nothing to own")
    return [AttemptLeased(epoch=command.epoch, owner=command.owner, leased_at=command.at)]


def _intend_start(state: Run | Ending, command: IntendStart) -> list[Event]:
    intent = AttemptStartIntended(epoch=command.epoch, token_sha256=command.token_sha256, intended_at=command.at)
    match state:
        case Requested():
            return [intent]
        case Starting() if state.intent_epoch < command.epoch:
            return [intent]
        case Starting() if state.token_sha256 == command.token_sha256:
            return []
        case Starting():
            raise Rejected("invalid_job_state", "this epoch has intended its one start already")
        case Accepted() | Running() | Ending():
            raise Rejected("invalid_job_state", "the attempt is past its start")
        case _:
            assert_never(state)


def _accepted(run: Run, command: RecordAccepted) -> list[Event]:
    accepted = _acceptance(command)
    match run:
        case Starting():
            return [accepted]
        case Running(provider_ref=None):
            return [accepted]
        case Accepted() | Running():
            if run.provider_ref == command.provider_ref:
                return []
            raise Rejected("invalid_job_state", f"the attempt's run is {run.provider_ref}, not {command.provider_ref}")
        case Requested():
            raise Rejected("invalid_job_state", "no start was intended")
        case _:
            assert_never(run)


def _acceptance(command: RecordAccepted) -> AttemptAccepted:
    return AttemptAccepted(epoch=command.epoch, provider_ref=command.provider_ref, accepted_at=command.at)


def _start_refused(state: Run | Ending, command: RecordStartRefused) -> list[Event]:
    match state:
        case Requested() | Starting():
            return [
                AttemptFailed(
                    kind=command.kind,
                    message=command.message,
                    advice=command.advice,
                    exit_code=None,
                    ended_at=command.at,
                    billed_seconds=0,
                )
            ]
        case Ending(run=Requested() | Starting()):
            return [AttemptCancelled(ended_at=command.at, billed_seconds=0)]
        case Accepted() | Running() | Ending():
            raise Rejected("invalid_job_state", "a run that was accepted cannot be refused")
        case _:
            assert_never(state)


def _observed(state: Run | Ending, command: RecordObserved) -> list[Event]:
    seen = command.observation
    match seen:
        case StillRunning():
            return []
        case Exited():
            return _exited(state, seen, command)
        case Gone():
            return [_vanished(state, seen.message, seen.ended_at, command.at)]
        case NeverStarted():
            run = run_of(state)
            if isinstance(run, Starting) and run.intent_epoch >= command.epoch:
                # Under the epoch that intended it the start may still be on its way: only a later one can tell.
                raise Rejected("invalid_job_state", "an intended start is resolved under a later epoch")
            if isinstance(state, Requested | Starting):
                return []
            return [_vanished(state, "The provider no longer knows this run.", None, command.at)]
        case _:
            assert_never(seen)


def _exited(state: Run | Ending, seen: Exited, command: RecordObserved) -> list[Event]:
    waited_s = (command.at - seen.ended_at).total_seconds()
    if seen.code == ExitCode.DONE and waited_s < command.report_grace_s:
        return []
    run = run_of(state)
    billed = billed_seconds(run, seen.ended_at)
    if isinstance(state, Ending):
        return [AttemptCancelled(ended_at=seen.ended_at, billed_seconds=billed)]
    meaning = meaning_of(seen.code, seen.last_words)
    return [
        AttemptFailed(
            kind=meaning.kind,
            message=meaning.message,
            advice=meaning.advice,
            exit_code=seen.code,
            ended_at=seen.ended_at,
            billed_seconds=billed,
        )
    ]


def _vanished(state: Run | Ending, message: str, last_sign_at: datetime | None, now: datetime) -> Event:
    run = run_of(state)
    ended_at = _vanished_at(run, last_sign_at, now)
    billed = billed_seconds(run, ended_at)
    if isinstance(state, Ending):
        return AttemptCancelled(ended_at=ended_at, billed_seconds=billed)
    return AttemptLost(message=message, ended_at=ended_at, billed_seconds=billed)


def _vanished_at(run: Run, last_sign_at: datetime | None, now: datetime) -> datetime:
    """The last sign of life. Nobody pays for the time between it and the moment the run was missed."""
    if not isinstance(run, Running):
        return min(last_sign_at or now, now)
    return max(run.started_at, min(last_sign_at or run.started_at, now))
