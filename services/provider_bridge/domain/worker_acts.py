"""What may be asked of a worker's stream; time and digests come along."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.worker import RunOutcome, WorkerType


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """An administrator makes it."""

    name: str
    worker_type: WorkerType
    labels: dict[str, str]
    token_sha256: str
    price_micro_usd_per_hour: int
    at: datetime


class RotateToken(msgspec.Struct, frozen=True, kw_only=True):
    """An administrator gives it another token."""

    token_sha256: str
    at: datetime


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """It is to get no more runs."""

    at: datetime


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """It is to get runs again."""

    at: datetime


class Remove(msgspec.Struct, frozen=True, kw_only=True):
    """It is to be forgotten; `force` gives up its run."""

    force: bool
    at: datetime
    reason: Literal["asked", "never_registered", "ephemeral_offline"] = "asked"


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """It tells what it is, and which run it says is its own: the job, and the attempt if it knows that."""

    name: str
    gpu_info: dict[str, Any]
    labels: dict[str, str]
    provider: str | None
    has_job: str | None = None
    has_attempt: UUID | None = None
    at: datetime


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """It gave a sign of life."""

    at: datetime


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """It gave none for too long."""

    last_heard_at: datetime
    at: datetime


class Assign(msgspec.Struct, frozen=True, kw_only=True):
    """A run is to be its own."""

    attempt_id: UUID
    job_id: UUID
    epoch: int
    at: datetime


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """It says that the run's trainer was started."""

    attempt_id: UUID
    at: datetime


class AskCancel(msgspec.Struct, frozen=True, kw_only=True):
    """The run is to end."""

    attempt_id: UUID
    grace_s: float
    at: datetime


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The run is no longer its own."""

    attempt_id: UUID
    outcome: RunOutcome
    exit_code: int | None = None
    ended_at: datetime
    last_words: str = ""
    at: datetime


WorkerAct = (
    Create | RotateToken | Drain | Resume | Remove | Register | Heard | Missed | Assign | Begin | AskCancel | Release
)
