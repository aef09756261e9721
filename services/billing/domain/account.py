"""The account decider: one owner's ledger for one month.

Every posting list sums to zero, because each is made from moves between two ledger accounts. A month begins with 0
`available`; reserving moves from `available` to `reserved`, capturing to `spent`, releasing back to `available`. The
floor is how far below zero `available` may be taken by a reservation: a month's spending limit is a negative floor.

A capture is the sum of what was metered, whatever was reserved: usage is real even when the estimate was short. What
exceeds the reservation is taken from `available`, also below the floor. Each job is reserved at most once, refused at
most once and captured at most once. Usage metered after the capture is charged by itself, from `available` too: a
rented machine is confirmed gone a little after its job has ended.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import assert_never
from uuid import UUID

import msgspec

from services.billing.domain.pricing import Estimate, cost_micro_usd
from shared.contracts.account import (
    AccountOpened,
    FundsCaptured,
    FundsRefused,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    Posting,
    UsageMetered,
)
from shared.contracts.job import Event
from shared.problems import Rejected

AVAILABLE = "available"
RESERVED = "reserved"
SPENT = "spent"

# ---- commands, with the moment and the price bound in ----------------------------------------------------------------


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Set the estimate of a job aside. `estimate` None: no price is known, which is a refusal."""

    job_id: UUID
    owner: str
    month: str
    provider: str
    floor_micro_usd: int | None
    estimate: Estimate | None
    at: datetime


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt ended after so many seconds at this price."""

    job_id: UUID
    attempt_id: UUID
    seconds: int
    price_micro_usd_per_hour: int
    at: datetime


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """The job ended: charge what was metered, give the rest back."""

    job_id: UUID
    at: datetime


AccountCommand = Reserve | Meter | Settle

# ---- state -----------------------------------------------------------------------------------------------------------


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The job was not let in; the same question gets the same answer."""

    message: str
    available_micro_usd: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The job has a reservation, and so far this usage."""

    reserved_micro_usd: int
    price_micro_usd_per_hour: int
    metered: Mapping[UUID, int]
    """Attempt -> amount in micro-dollars."""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The job was charged; this is final."""

    reserved_micro_usd: int
    price_micro_usd_per_hour: int
    metered: Mapping[UUID, int]
    captured_micro_usd: int


JobMoney = Refused | Held | Settled


class Unopened(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody has spent or asked to spend here."""


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """The month's balances and jobs."""

    floor_micro_usd: int | None
    available_micro_usd: int = 0
    jobs: Mapping[UUID, JobMoney] = {}


Account = Unopened | Open


def job_money(state: Account, job_id: UUID) -> JobMoney | None:
    """What the account knows of a job."""
    return state.jobs.get(job_id) if isinstance(state, Open) else None


def evolve(state: Account, event: Event) -> Account:
    """The account after one more event."""
    match state:
        case Unopened():
            return Open(floor_micro_usd=event.floor_micro_usd) if isinstance(event, AccountOpened) else state
        case Open():
            return _evolve_open(state, event)
        case _:
            assert_never(state)


def _evolve_open(state: Open, event: Event) -> Open:
    match event:
        case FundsReserved():
            held = Held(
                reserved_micro_usd=event.amount_micro_usd,
                price_micro_usd_per_hour=event.price_micro_usd_per_hour,
                metered={},
            )
            return _moved(_with_job(state, event.job_id, held), event.postings)
        case FundsRefused():
            refused = Refused(message=event.message, available_micro_usd=event.available_micro_usd)
            return _with_job(state, event.job_id, refused)
        case UsageMetered():
            return _metered(state, event)
        case FundsCaptured():
            return _moved(_captured(state, event), event.postings)
        case FundsReleased() | LateUsageCharged():
            return _moved(state, event.postings)
        case _:
            return state


def _with_job(state: Open, job_id: UUID, money: JobMoney) -> Open:
    return msgspec.structs.replace(state, jobs={**state.jobs, job_id: money})


def _moved(state: Open, postings: Sequence[Posting]) -> Open:
    moved = sum(posting.amount_micro_usd for posting in postings if posting.ledger_account == AVAILABLE)
    return msgspec.structs.replace(state, available_micro_usd=state.available_micro_usd + moved)


def _metered(state: Open, event: UsageMetered) -> Open:
    match state.jobs.get(event.job_id):
        case Held() | Settled() as money:
            metered = {**money.metered, event.attempt_id: event.amount_micro_usd}
            return _with_job(state, event.job_id, msgspec.structs.replace(money, metered=metered))
        case _:
            return state


def _captured(state: Open, event: FundsCaptured) -> Open:
    match state.jobs.get(event.job_id):
        case Held() as held:
            settled = Settled(
                reserved_micro_usd=held.reserved_micro_usd,
                price_micro_usd_per_hour=held.price_micro_usd_per_hour,
                metered=held.metered,
                captured_micro_usd=event.amount_micro_usd,
            )
            return _with_job(state, event.job_id, settled)
        case _:
            return state


# ---- decide ----------------------------------------------------------------------------------------------------------


def decide(state: Account, command: AccountCommand) -> Sequence[Event]:
    """The events that the command adds, none if it was carried out before.

    Raises:
        Rejected: `not_found` for usage of a job without a reservation.
    """
    match command:
        case Reserve():
            return _reserve(state, command)
        case Meter():
            return _meter(state, command)
        case Settle():
            return _settle(state, command)
        case _:
            assert_never(command)


def _reserve(state: Account, command: Reserve) -> Sequence[Event]:
    if job_money(state, command.job_id) is not None:
        return []
    opening: list[Event] = []
    if isinstance(state, Unopened):
        opened = AccountOpened(
            owner=command.owner, month=command.month, floor_micro_usd=command.floor_micro_usd, opened_at=command.at
        )
        opening, state = [opened], Open(floor_micro_usd=command.floor_micro_usd)
    message = _objection(state, command)
    if message is not None or command.estimate is None:
        asked = command.estimate.amount_micro_usd if command.estimate else 0
        refusal = FundsRefused(
            job_id=command.job_id,
            asked_micro_usd=asked,
            available_micro_usd=state.available_micro_usd,
            message=message or "",
            refused_at=command.at,
        )
        return [*opening, refusal]
    reserved = FundsReserved(
        job_id=command.job_id,
        amount_micro_usd=command.estimate.amount_micro_usd,
        price_micro_usd_per_hour=command.estimate.price_micro_usd_per_hour,
        postings=_move(command.estimate.amount_micro_usd, AVAILABLE, RESERVED),
        reserved_at=command.at,
    )
    return [*opening, reserved]


def _objection(state: Open, command: Reserve) -> str | None:
    """Why the job may not be paid for; None when it may. Doubt is an objection."""
    if command.estimate is None:
        return f"No price is known for provider {command.provider}, so nothing can be spent there."
    asked = command.estimate.amount_micro_usd
    if asked < 0 or command.estimate.price_micro_usd_per_hour < 0:
        return f"The price of provider {command.provider} is negative."
    if state.floor_micro_usd is None:
        return None
    left = state.available_micro_usd - state.floor_micro_usd
    if asked <= left:
        return None
    return f"The estimate of {_usd(asked)} is more than the {_usd(max(left, 0))} left this month."


def _meter(state: Account, command: Meter) -> Sequence[Event]:
    match job_money(state, command.job_id):
        case Held() | Settled() as money:
            if command.attempt_id in money.metered:
                return []
        case Refused() | None:
            raise Rejected("not_found", "The job has no reservation that its usage could be booked on.")
    if command.seconds < 0 or command.price_micro_usd_per_hour < 0:
        raise Rejected("validation_error", "Seconds and price cannot be negative.", field="seconds")
    amount = cost_micro_usd(command.seconds, command.price_micro_usd_per_hour)
    metered = UsageMetered(
        job_id=command.job_id,
        attempt_id=command.attempt_id,
        seconds=command.seconds,
        price_micro_usd_per_hour=command.price_micro_usd_per_hour,
        amount_micro_usd=amount,
        metered_at=command.at,
    )
    if isinstance(money, Held) or amount == 0:
        return [metered]
    charged = LateUsageCharged(
        job_id=command.job_id,
        attempt_id=command.attempt_id,
        amount_micro_usd=amount,
        postings=_move(amount, AVAILABLE, SPENT),
        charged_at=command.at,
    )
    return [metered, charged]


def _settle(state: Account, command: Settle) -> Sequence[Event]:
    money = job_money(state, command.job_id)
    if not isinstance(money, Held):
        return []
    cost = sum(money.metered.values())
    covered = min(cost, money.reserved_micro_usd)
    rest = money.reserved_micro_usd - covered
    captured = FundsCaptured(
        job_id=command.job_id,
        amount_micro_usd=cost,
        postings=_move(covered, RESERVED, SPENT) + _move(cost - covered, AVAILABLE, SPENT),
        captured_at=command.at,
    )
    released = FundsReleased(
        job_id=command.job_id,
        amount_micro_usd=rest,
        postings=_move(rest, RESERVED, AVAILABLE),
        released_at=command.at,
    )
    return [captured, released] if rest else [captured]


def _move(amount_micro_usd: int, source: str, target: str) -> list[Posting]:
    """A move between two ledger accounts: sums to zero by construction. Moving nothing posts nothing."""
    if amount_micro_usd == 0:
        return []
    return [
        Posting(ledger_account=source, amount_micro_usd=-amount_micro_usd),
        Posting(ledger_account=target, amount_micro_usd=amount_micro_usd),
    ]


def _usd(amount_micro_usd: int) -> str:
    """0.10 USD, and as many decimals more as the amount has: two amounts that differ never look the same."""
    dollars, rest = divmod(amount_micro_usd, 1_000_000)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{dollars}.{decimals} USD"
