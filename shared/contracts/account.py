"""Commands accepted by, and events written to, `account-<uuid5 of owner and month>` streams. Owner: billing.

Money is an integer in micro-dollars. Every posting list sums to zero.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from shared.contracts.job import Command, Event


class Posting(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a balanced entry. Ledger accounts: `available`, `reserved`, `spent`, `external`."""

    ledger_account: str
    amount_micro_usd: int


# ---- events ----------------------------------------------------------------------------------------------------------


class AccountOpened(Event, frozen=True, kw_only=True, tag="account.opened.v1"):
    """An owner's ledger for one month. `floor_micro_usd` None means no spending limit is set."""

    owner: str
    month: str
    """`2026-11`"""
    floor_micro_usd: int | None
    opened_at: datetime


class FundsReserved(Event, frozen=True, kw_only=True, tag="account.funds_reserved.v1"):
    """The estimate of a job is set aside at this price."""

    job_id: UUID
    amount_micro_usd: int
    price_micro_usd_per_hour: int
    postings: list[Posting]
    reserved_at: datetime


class FundsRefused(Event, frozen=True, kw_only=True, tag="account.funds_refused.v1"):
    """The estimate does not fit; nothing moved."""

    job_id: UUID
    asked_micro_usd: int
    available_micro_usd: int
    message: str
    refused_at: datetime


class UsageMetered(Event, frozen=True, kw_only=True, tag="account.usage_metered.v1"):
    """Machine seconds of one attempt that has ended, priced as quoted when it was bound."""

    job_id: UUID
    attempt_id: UUID
    seconds: int
    price_micro_usd_per_hour: int
    amount_micro_usd: int
    metered_at: datetime


class FundsCaptured(Event, frozen=True, kw_only=True, tag="account.funds_captured.v1"):
    """The job has ended: what it cost as far as it was metered, posted once."""

    job_id: UUID
    amount_micro_usd: int
    postings: list[Posting]
    captured_at: datetime


class LateUsageCharged(Event, frozen=True, kw_only=True, tag="account.late_usage_charged.v1"):
    """A machine of a job that was charged already turned out to have run: its seconds are paid for as well.

    A rented machine is confirmed gone after its job has ended, and an orphan may be found later still.
    """

    job_id: UUID
    attempt_id: UUID
    amount_micro_usd: int
    postings: list[Posting]
    charged_at: datetime


class FundsReleased(Event, frozen=True, kw_only=True, tag="account.funds_released.v1"):
    """The rest of the reservation goes back."""

    job_id: UUID
    amount_micro_usd: int
    postings: list[Posting]
    released_at: datetime


AccountEvent = (
    AccountOpened | FundsReserved | FundsRefused | UsageMetered | FundsCaptured | FundsReleased | LateUsageCharged
)

# ---- commands; the subject is cmd.billing.<tag> ----------------------------------------------------------------------


class ReserveFunds(Command, frozen=True, kw_only=True, tag="reserve_funds"):
    """Estimates and sets aside the cost of a job; a repeat for the same job changes nothing.

    Answers `{"reserved_micro_usd": int, "price_micro_usd_per_hour": int}`, or refuses with `funds_refused`.
    """

    job_id: UUID
    owner: str
    provider: str
    max_train_steps: int | None
    price_micro_usd_per_hour: int | None = None
    """Of the machine that the job will likely run on; None = billing's own price of the provider."""


class MeterUsage(Command, frozen=True, kw_only=True, tag="meter_usage"):
    """Books the machine seconds of an attempt that has ended; once per attempt."""

    job_id: UUID
    attempt_id: UUID
    seconds: int
    price_micro_usd_per_hour: int


class SettleJob(Command, frozen=True, kw_only=True, tag="settle_job"):
    """Captures what was metered and releases the rest; once per job. Answers `{"captured_micro_usd": int}`."""

    job_id: UUID


class ReadAccount(Command, frozen=True, kw_only=True, tag="read_account"):
    """Asks for one owner's ledger of a month, now or as it was at a position; writes nothing. `not_found` before it.

    Answers `{"owner", "month", "floor_micro_usd", "opened_at", "balances": {ledger account: micro-dollars},
    "sum_micro_usd": 0, "entries", "jobs": [{"job_id", "state", "reserved_micro_usd", "metered_micro_usd",
    "captured_micro_usd", "released_micro_usd"}], "jobs_total"}`; `jobs` is a page, in the order of their reservations.
    """

    owner: str
    month: str | None = None
    """`2026-11`; None is the present one."""
    up_to_position: int = 0
    """0: everything there is."""
    limit: int = 1000
    offset: int = 0


class ReadJobCost(Command, frozen=True, kw_only=True, tag="read_job_cost"):
    """Asks what a job was reserved, metered, charged and given back; writes nothing. `not_found` before a reservation.

    Answers `{"reserved_micro_usd", "metered_micro_usd", "captured_micro_usd", "released_micro_usd", "entries":
    [{"position", "type", "ledger_account", "amount_micro_usd", "at"}]}`; captured is 0 until the job has ended.
    """

    job_id: UUID
