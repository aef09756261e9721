"""What a job costs, as billing's ledger tells it, and what its running attempt adds until billing has booked it."""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import assert_never

import msgspec
from msgspec.structs import replace

from services.gateway.domain.view_attempt import AttemptView
from shared.contracts.account import (
    AccountEvent,
    AccountOpened,
    FundsCaptured,
    FundsRefused,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    UsageMetered,
)

SECONDS_PER_HOUR = 3600


class MoneyView(msgspec.Struct, frozen=True, kw_only=True):
    """One job's money in micro-dollars; None means it has not happened."""

    reserved_micro_usd: int | None = None
    price_micro_usd_per_hour: int | None = None
    metered_micro_usd: dict[str, int] = {}
    """Attempt id -> what its machine time cost."""
    captured_micro_usd: int | None = None
    released_micro_usd: int | None = None
    refused: str | None = None


def evolve_money(money: MoneyView, event: AccountEvent) -> MoneyView:
    """The job's money after one more event of its owner's account."""
    match event:
        case AccountOpened():
            return money
        case FundsReserved():
            return replace(
                money,
                reserved_micro_usd=event.amount_micro_usd,
                price_micro_usd_per_hour=event.price_micro_usd_per_hour,
            )
        case FundsRefused():
            return replace(money, refused=event.message)
        case UsageMetered():
            metered = {**money.metered_micro_usd, str(event.attempt_id): event.amount_micro_usd}
            return replace(money, metered_micro_usd=metered)
        case FundsCaptured() | LateUsageCharged():
            captured = (money.captured_micro_usd or 0) + event.amount_micro_usd
            return replace(money, captured_micro_usd=captured)
        case FundsReleased():
            return replace(money, released_micro_usd=event.amount_micro_usd)
        case _:
            assert_never(event)


def cost_micro_usd(money: MoneyView, attempts: Iterable[AttemptView], now: datetime) -> int | None:
    """What was captured, else what was metered plus the seconds not booked yet at their price; None before any."""
    if money.captured_micro_usd is not None:
        return money.captured_micro_usd
    total, known = 0, money.reserved_micro_usd is not None
    for attempt in attempts:
        booked = money.metered_micro_usd.get(str(attempt.attempt_id))
        known = known or booked is not None or attempt.started_at is not None
        total += _unbooked(attempt, now) if booked is None else booked
    return total if known else None


def _unbooked(attempt: AttemptView, now: datetime) -> int:
    """Rounded as it will be billed, or the figure would jump at the end: seconds up, micro-dollars half up."""
    if attempt.billed_seconds is not None:
        seconds = attempt.billed_seconds
    elif attempt.started_at is not None:
        seconds = max(0, math.ceil((now - attempt.started_at).total_seconds()))
    else:
        seconds = 0
    return (2 * seconds * attempt.price_micro_usd_per_hour + SECONDS_PER_HOUR) // (2 * SECONDS_PER_HOUR)
