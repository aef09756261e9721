"""What the attempt decider is asked, from outside and by the bridge itself. Time and ids are bound when built.

Every command of the bridge itself (`Fenced`) carries the epoch of the lease it acts under.
"""

from datetime import datetime

import msgspec

from shared.contracts.attempt import AskTrainer, CancelAttempt, Quote, ReportMilestone, RequestAttempt

REPORT_GRACE_S = 20.0
"""How long after exit code 0 the `done` report may still be on its way."""


# ---- from outside ----------------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`RequestAttempt`, with the price it is bound to and the moment it was received."""

    command: RequestAttempt
    quote: Quote
    at: datetime


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """`CancelAttempt`, with the moment it was received."""

    command: CancelAttempt
    at: datetime


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """`AskTrainer`, with the moment it was received."""

    command: AskTrainer
    at: datetime


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`ReportMilestone`; its own `at` is the trainer's moment."""

    command: ReportMilestone


class NoteWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """The provider sent a genuine webhook about the run."""

    webhook_id: str
    word: str
    at: datetime


# ---- what a provider shows of a run ----------------------------------------------------------------------------------


class StillRunning(msgspec.Struct, frozen=True, kw_only=True):
    """The run is alive, or waits to be."""


class Exited(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer process ended with `code`; negative = by that signal. `last_words` are its last lines of output."""

    code: int
    ended_at: datetime
    last_words: str = ""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """There was a run, nothing of it is left, and how it ended was not recorded."""

    message: str
    ended_at: datetime | None = None
    """Its last sign of life; None = nobody knows of any."""


class NeverStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The provider has no run of this attempt, and will start none for an epoch lower than the asking one."""


Observation = StillRunning | Exited | Gone | NeverStarted


# ---- from the bridge itself ------------------------------------------------------------------------------------------


class Fenced(msgspec.Struct, frozen=True, kw_only=True):
    """Decided only if `epoch` is the attempt's present one; a lower one is refused with `stale_epoch`."""

    epoch: int
    at: datetime


class TakeLease(Fenced, frozen=True, kw_only=True):
    """`owner` takes the attempt under a new, higher epoch."""

    owner: str


class IntendStart(Fenced, frozen=True, kw_only=True):
    """The provider is about to be asked for a run whose token has this digest."""

    token_sha256: str


class RecordAccepted(Fenced, frozen=True, kw_only=True):
    """The provider has the run and calls it `provider_ref`."""

    provider_ref: str


class RecordStartRefused(Fenced, frozen=True, kw_only=True):
    """The provider will not start this run, whatever is repeated; `kind` says whether another one may."""

    kind: str = "start_refused"
    message: str
    advice: str | None


class RecordObserved(Fenced, frozen=True, kw_only=True):
    """What the provider showed at `at`."""

    observation: Observation
    report_grace_s: float = REPORT_GRACE_S


class RecordWord(Fenced, frozen=True, kw_only=True):
    """The provider called the run something that is in no table of ours."""

    word: str


class RecordReleased(Fenced, frozen=True, kw_only=True):
    """The machine of an attempt that has ended is confirmed gone.

    `started_at` and `billed_s` are what the provider says, if it says.
    """

    provider_ref: str | None
    started_at: datetime | None = None
    ended_at: datetime
    billed_s: float | None = None


FencedCommand = (
    TakeLease | IntendStart | RecordAccepted | RecordStartRefused | RecordObserved | RecordWord | RecordReleased
)
AttemptCommand = Request | Cancel | Ask | Report | NoteWebhook | FencedCommand
