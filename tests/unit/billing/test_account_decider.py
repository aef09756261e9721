"""The account decider: given past events, when a command, then events or a code."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.billing.domain.account import Account, AccountCommand, Meter, Reserve, Settle, Unopened, decide, evolve
from services.billing.domain.pricing import Estimate
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

T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOB, OTHER_JOB = UUID(int=1), UUID(int=2)
ATTEMPT, NEXT_ATTEMPT = UUID(int=11), UUID(int=12)
PRICE = 3_600_000
"""1000 micro-dollars a second."""


def state_after(events: Sequence[Event]) -> Account:
    state: Account = Unopened()
    for event in events:
        state = evolve(state, event)
    return state


def when(given: Sequence[Event], command: AccountCommand) -> list[Event]:
    return list(decide(state_after(given), command))


def a_reserve(amount: int = 100, *, job_id: UUID = JOB, floor: int | None = None, price: int = PRICE) -> Reserve:
    expected = Estimate(seconds=1, price_micro_usd_per_hour=price, amount_micro_usd=amount)
    return Reserve(
        job_id=job_id,
        owner="alice",
        month="2026-11",
        provider="local",
        floor_micro_usd=floor,
        estimate=expected,
        at=T0,
    )


def a_meter(seconds: int, attempt_id: UUID = ATTEMPT, job_id: UUID = JOB) -> Meter:
    return Meter(job_id=job_id, attempt_id=attempt_id, seconds=seconds, price_micro_usd_per_hour=PRICE, at=T0)


def reserved(amount: int, floor: int | None = None) -> list[Event]:
    return when([], a_reserve(amount, floor=floor))


SETTLE = Settle(job_id=JOB, at=T0)


def posted(source: str, target: str, amount: int) -> list[Posting]:
    return [
        Posting(ledger_account=source, amount_micro_usd=-amount),
        Posting(ledger_account=target, amount_micro_usd=amount),
    ]


def test_the_first_reservation_of_a_month_opens_its_account() -> None:
    opened, held = when([], a_reserve(100))
    assert opened == AccountOpened(owner="alice", month="2026-11", floor_micro_usd=None, opened_at=T0)
    assert held == FundsReserved(
        job_id=JOB,
        amount_micro_usd=100,
        price_micro_usd_per_hour=PRICE,
        postings=posted("available", "reserved", 100),
        reserved_at=T0,
    )


def test_a_repeated_reservation_changes_nothing_whatever_it_asks_for() -> None:
    assert when(reserved(100), a_reserve(900)) == []


def test_another_job_is_reserved_on_the_open_account() -> None:
    (held,) = when(reserved(100), a_reserve(50, job_id=OTHER_JOB))
    assert isinstance(held, FundsReserved)


def test_a_free_job_is_reserved_without_postings() -> None:
    held = reserved(0)[-1]
    assert isinstance(held, FundsReserved)
    assert held.postings == []


def test_a_reservation_down_to_the_floor_is_let_in_and_one_below_is_not() -> None:
    assert isinstance(reserved(100, floor=-100)[-1], FundsReserved)
    refusal = reserved(101, floor=-100)[-1]
    assert refusal == FundsRefused(
        job_id=JOB,
        asked_micro_usd=101,
        available_micro_usd=0,
        message="The estimate of 0.000101 USD is more than the 0.0001 USD left this month.",
        refused_at=T0,
    )


def test_what_other_jobs_hold_is_not_left() -> None:
    past = reserved(60, floor=-100)
    assert isinstance(when(past, a_reserve(41, job_id=OTHER_JOB))[-1], FundsRefused)
    assert isinstance(when(past, a_reserve(40, job_id=OTHER_JOB))[-1], FundsReserved)


def test_what_was_released_is_left_again() -> None:
    past = reserved(100, floor=-100)
    past += when(past, SETTLE)
    assert isinstance(when(past, a_reserve(100, job_id=OTHER_JOB))[-1], FundsReserved)


def test_the_floor_of_an_open_month_stays_what_it_was() -> None:
    past = reserved(60, floor=-100)
    assert isinstance(when(past, a_reserve(41, job_id=OTHER_JOB, floor=None))[-1], FundsRefused)


def test_a_job_that_was_refused_stays_refused() -> None:
    assert when(reserved(101, floor=-100), a_reserve(1, floor=-100)) == []


def test_a_provider_without_a_price_is_refused() -> None:
    command = Reserve(
        job_id=JOB, owner="a", month="2026-11", provider="moon", floor_micro_usd=None, estimate=None, at=T0
    )
    refusal = when([], command)[-1]
    assert isinstance(refusal, FundsRefused)
    assert refusal.message == "No price is known for provider moon, so nothing can be spent there."


@pytest.mark.parametrize(("amount", "price"), [(-1, PRICE), (1, -1)])
def test_a_negative_price_is_refused(amount: int, price: int) -> None:
    assert isinstance(when([], a_reserve(amount, price=price))[-1], FundsRefused)


def test_usage_is_booked_once_per_attempt_and_moves_nothing() -> None:
    (metered,) = when(reserved(100), a_meter(7))
    assert isinstance(metered, UsageMetered)
    assert metered.amount_micro_usd == 7000
    past = [*reserved(100), metered]
    assert when(past, a_meter(7)) == []
    assert when(past, a_meter(9)) == []
    assert len(when(past, a_meter(9, NEXT_ATTEMPT))) == 1


def test_usage_of_a_job_without_a_reservation_is_refused() -> None:
    for past in ([], reserved(101, floor=-100), when([], a_reserve(1, job_id=OTHER_JOB))):
        with pytest.raises(Rejected, match="not_found"):
            when(past, a_meter(1))


def test_negative_usage_is_refused() -> None:
    with pytest.raises(Rejected, match="validation_error"):
        when(reserved(100), a_meter(-1))


def test_settling_charges_what_was_metered_and_releases_the_rest() -> None:
    past = reserved(10_000)
    past += when(past, a_meter(3))
    past += when(past, a_meter(4, NEXT_ATTEMPT))
    assert when(past, SETTLE) == [
        FundsCaptured(job_id=JOB, amount_micro_usd=7000, postings=posted("reserved", "spent", 7000), captured_at=T0),
        FundsReleased(
            job_id=JOB, amount_micro_usd=3000, postings=posted("reserved", "available", 3000), released_at=T0
        ),
    ]


def test_usage_beyond_the_reservation_is_charged_too_even_below_the_floor() -> None:
    past = reserved(1000, floor=-1000)
    past += when(past, a_meter(3))
    (captured,) = when(past, SETTLE)
    assert captured == FundsCaptured(
        job_id=JOB,
        amount_micro_usd=3000,
        postings=posted("reserved", "spent", 1000) + posted("available", "spent", 2000),
        captured_at=T0,
    )
    past.append(captured)
    assert isinstance(when(past, a_reserve(1, job_id=OTHER_JOB))[-1], FundsRefused)


def test_a_job_that_used_nothing_gets_everything_back() -> None:
    captured, released = when(reserved(100), SETTLE)
    assert isinstance(captured, FundsCaptured)
    assert isinstance(released, FundsReleased)
    assert (captured.amount_micro_usd, captured.postings, released.amount_micro_usd) == (0, [], 100)


def test_settling_twice_charges_once() -> None:
    past = reserved(100)
    past += when(past, SETTLE)
    assert when(past, SETTLE) == []


@pytest.mark.parametrize("past", [[], reserved(101, floor=-100)])
def test_settling_a_job_that_holds_nothing_moves_nothing(past: list[Event]) -> None:
    assert when(past, SETTLE) == []


def test_usage_after_the_charge_is_charged_by_itself_once() -> None:
    past = reserved(10_000)
    past += when(past, SETTLE)
    late, charged = when(past, a_meter(3))
    assert isinstance(late, UsageMetered)
    assert isinstance(charged, LateUsageCharged)
    assert charged.amount_micro_usd == late.amount_micro_usd
    assert charged.postings == posted("available", "spent", late.amount_micro_usd)
    assert when([*past, late, charged], SETTLE) == []
    assert when([*past, late, charged], a_meter(3)) == []
