"""Crafted histories: events as a log would hold them, in the order given."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID, uuid5

import msgspec

from shared.contracts import catalogue
from shared.contracts.account import FundsCaptured, FundsReleased, FundsReserved, Posting, UsageMetered
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptFailed,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    Quote,
)
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobDispatched,
    JobFailed,
    JobFundsReserved,
    JobQueued,
    JobStarted,
    JobSubmitted,
)
from tests.fault.rules import Fact, facts_of

T0 = datetime(2026, 11, 22, 12, tzinfo=UTC)
_SPACE = UUID("6f1f7b1e-52f1-4a7c-9d52-0c1f5b1f7a10")

Line = tuple[UUID, str, Event]
"""Whose story, on which stream, what."""


def an_id(name: str) -> UUID:
    """The same id for the same name."""
    return uuid5(_SPACE, name)


def moment(seconds: float) -> datetime:
    """So many seconds after the history began."""
    return T0 + timedelta(seconds=seconds)


def history(*lines: Line, first_position: int = 1) -> list[RecordedEvent]:
    """The lines as a log holds them: one position after the other, one second apart."""
    versions: dict[str, int] = {}
    rows: list[RecordedEvent] = []
    for place, (job_id, stream, event) in enumerate(lines, start=first_position):
        versions[stream] = versions.get(stream, 0) + 1
        rows.append(
            RecordedEvent(
                global_position=place,
                event_id=uuid5(job_id, str(place)),
                stream=stream,
                stream_version=versions[stream],
                type=catalogue.event_type(type(event)),
                data=msgspec.Raw(catalogue.encode(event)),
                meta=EventMetadata(),
                correlation_id=job_id,
                recorded_at=moment(place),
                hash=sha256(str(place).encode()).digest(),
            )
        )
    return rows


def facts(*lines: Line) -> list[Fact]:
    """The same, decoded."""
    return facts_of(history(*lines))


class Job:
    """Lines about one job, its attempts and its money: `job = Job("a"); job(job.submitted())`."""

    def __init__(self, name: str, user: str = "local") -> None:
        self.id = an_id(name)
        self.user = user
        self.account = f"account-{an_id(user)}"

    def __call__(self, event: Event) -> Line:
        """A line of the job's own stream."""
        return (self.id, f"job-{self.id}", event)

    def attempt(self, number: int, event: Event) -> Line:
        """A line of its attempt's stream."""
        return (self.id, f"attempt-{self.attempt_id(number)}", event)

    def money(self, event: Event) -> Line:
        """A line of its user's account."""
        return (self.id, self.account, event)

    def attempt_id(self, number: int) -> UUID:
        """The id of its attempt."""
        return uuid5(self.id, f"attempt {number}")

    # ---- the job's stream --------------------------------------------------------------------------------------------

    def submitted(self, key: str | None = None) -> Line:
        """Accepted."""
        event = JobSubmitted(
            user_id=self.user,
            provider="local",
            priority=10,
            config={},
            dataloader=[],
            datasets=[],
            config_name=None,
            tracker_run_name=None,
            idempotency_key=key,
            account=self.user,
            submitted_at=T0,
        )
        return self(event)

    def funded(self, reserved: int = 100, price: int = 3_600_000) -> Line:
        """Told of its reservation."""
        return self(JobFundsReserved(reserved_micro_usd=reserved, price_micro_usd_per_hour=price))

    def queued(self, reason: str = "first_time") -> Line:
        """Waits."""
        return self(JobQueued(queued_at=T0, reason=reason))

    def dispatched(self, number: int = 1) -> Line:
        """Has a slot."""
        event = JobDispatched(
            attempt_id=self.attempt_id(number),
            attempt_number=number,
            provider="local",
            resume=None,
            reason="test",
            dispatched_at=T0,
        )
        return self(event)

    def started(self, number: int = 1) -> Line:
        """Trains."""
        return self(JobStarted(attempt_id=self.attempt_id(number), started_at=T0))

    def attempt_failed(self, number: int = 1) -> Line:
        """Lost an attempt."""
        event = JobAttemptFailed(
            attempt_id=self.attempt_id(number), kind="internal", message="x", advice=None, failed_at=T0
        )
        return self(event)

    def failed(self) -> Line:
        """Ended."""
        return self(JobFailed(failed_at=T0, kind="internal", message="x", advice=None))

    def cancel_requested(self) -> Line:
        """Is to end."""
        return self(JobCancelRequested(requested_at=T0, reason="test"))

    def cancelled(self) -> Line:
        """Ended."""
        return self(JobCancelled(cancelled_at=T0, reason="test"))

    # ---- an attempt's stream -----------------------------------------------------------------------------------------

    def requested(self, number: int = 1, price: int = 3_600_000) -> Line:
        """The bridge owns it."""
        event = AttemptRequested(
            job_id=self.id,
            attempt_number=number,
            provider="local",
            quote=Quote(hardware="cpu", price_micro_usd_per_hour=price),
            config={},
            dataloader=[],
            datasets=[],
            resume=None,
            requested_at=T0,
        )
        return self.attempt(number, event)

    def intended(self, number: int = 1) -> Line:
        """Its machine is about to be started."""
        return self.attempt(number, AttemptStartIntended(epoch=1, token_sha256="0" * 64, intended_at=T0))

    def hello(self, number: int = 1, at_s: float = 0) -> Line:
        """Its trainer said hello."""
        return self.attempt(number, AttemptStarted(started_at=moment(at_s), device="cpu"))

    def attempt_cancel_requested(self, number: int = 1) -> Line:
        """It is to end."""
        return self.attempt(number, AttemptCancelRequested(requested_at=T0, reason="test"))

    def attempt_cancelled(self, number: int = 1, at_s: float = 0, billed: int = 0) -> Line:
        """It was ended."""
        return self.attempt(number, AttemptCancelled(ended_at=moment(at_s), billed_seconds=billed))

    def run_failed(self, number: int = 1, at_s: float = 0, billed: int = 0) -> Line:
        """It ended by itself."""
        event = AttemptFailed(
            kind="internal", message="x", advice=None, exit_code=1, ended_at=moment(at_s), billed_seconds=billed
        )
        return self.attempt(number, event)

    # ---- its money ---------------------------------------------------------------------------------------------------

    def reserved(self, amount: int = 100, price: int = 3_600_000) -> Line:
        """Set aside."""
        event = FundsReserved(
            job_id=self.id,
            amount_micro_usd=amount,
            price_micro_usd_per_hour=price,
            postings=moved(amount, "available", "reserved"),
            reserved_at=T0,
        )
        return self.money(event)

    def metered(self, number: int, seconds: int, amount: int) -> Line:
        """Used."""
        event = UsageMetered(
            job_id=self.id,
            attempt_id=self.attempt_id(number),
            seconds=seconds,
            price_micro_usd_per_hour=3_600_000,
            amount_micro_usd=amount,
            metered_at=T0,
        )
        return self.money(event)

    def captured(self, amount: int, postings: Sequence[Posting] | None = None) -> Line:
        """Charged."""
        given = list(moved(amount, "reserved", "spent") if postings is None else postings)
        return self.money(FundsCaptured(job_id=self.id, amount_micro_usd=amount, postings=given, captured_at=T0))

    def released(self, amount: int) -> Line:
        """Given back."""
        postings = moved(amount, "reserved", "available")
        return self.money(FundsReleased(job_id=self.id, amount_micro_usd=amount, postings=postings, released_at=T0))


def moved(amount: int, source: str, target: str) -> list[Posting]:
    """A balanced posting list."""
    return [
        Posting(ledger_account=source, amount_micro_usd=-amount),
        Posting(ledger_account=target, amount_micro_usd=amount),
    ]
