"""The ledger under any interleaving of reservations, usage and settlements of several jobs."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from fractions import Fraction
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.billing.domain.account import (
    Account,
    AccountCommand,
    Meter,
    Open,
    Reserve,
    Settle,
    Unopened,
    decide,
    evolve,
)
from services.billing.domain.pricing import Estimate, cost_micro_usd
from shared.contracts.account import (
    FundsCaptured,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    Posting,
    UsageMetered,
)
from shared.contracts.job import Event
from shared.problems import Rejected

T0 = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FLOOR = -5_000
JOBS = st.sampled_from([UUID(int=number) for number in range(1, 5)])
PRICES = st.sampled_from([0, 1, 1_799, 1_800, 3_600_000])
SECONDS = st.integers(0, 10)


@st.composite
def reserves(draw: st.DrawFn) -> Reserve:
    expected = Estimate(seconds=0, price_micro_usd_per_hour=draw(PRICES), amount_micro_usd=draw(st.integers(0, 4_000)))
    return Reserve(
        job_id=draw(JOBS),
        owner="alice",
        month="2026-11",
        provider="local",
        floor_micro_usd=FLOOR,
        estimate=draw(st.sampled_from([expected, expected, expected, None])),
        at=T0,
    )


@st.composite
def meters(draw: st.DrawFn) -> Meter:
    job_id, number = draw(JOBS), draw(st.integers(1, 2))
    return Meter(
        job_id=job_id,
        attempt_id=UUID(int=job_id.int * 100 + number),
        seconds=draw(SECONDS),
        price_micro_usd_per_hour=draw(PRICES),
        at=T0,
    )


COMMANDS: st.SearchStrategy[AccountCommand] = st.one_of(
    reserves(), meters(), JOBS.map(lambda job_id: Settle(job_id=job_id, at=T0))
)
STORIES = st.lists(COMMANDS, max_size=25)


def attempt(state: Account, command: AccountCommand) -> Sequence[Event]:
    try:
        return decide(state, command)
    except Rejected:
        return []


def lived(commands: Sequence[AccountCommand]) -> tuple[list[Event], Account]:
    events: list[Event] = []
    state: Account = Unopened()
    for command in commands:
        for event in attempt(state, command):
            events.append(event)
            state = evolve(state, event)
    return events, state


def postings(event: Event) -> list[Posting]:
    return event.postings if isinstance(event, FundsReserved | FundsCaptured | FundsReleased | LateUsageCharged) else []


def balances(events: Sequence[Event]) -> dict[str, int]:
    sums: defaultdict[str, int] = defaultdict(int)
    for event in events:
        for posting in postings(event):
            sums[posting.ledger_account] += posting.amount_micro_usd
    return sums


@given(STORIES)
def test_every_posting_list_sums_to_zero_and_so_does_the_ledger(commands: list[AccountCommand]) -> None:
    events, _ = lived(commands)
    for event in events:
        assert sum(posting.amount_micro_usd for posting in postings(event)) == 0
    assert sum(balances(events).values()) == 0


@given(STORIES)
def test_spent_is_what_was_captured_and_reserved_is_what_open_jobs_hold(commands: list[AccountCommand]) -> None:
    """The oracle: sums over jobs by hand, against the balances of the postings."""
    events, state = lived(commands)
    captured = {event.job_id: event.amount_micro_usd for event in events if isinstance(event, FundsCaptured)}
    held = {event.job_id: event.amount_micro_usd for event in events if isinstance(event, FundsReserved)}
    sums = balances(events)
    late = sum(event.amount_micro_usd for event in events if isinstance(event, LateUsageCharged))
    assert sums.get("spent", 0) == sum(captured.values()) + late
    assert sums.get("reserved", 0) == sum(amount for job_id, amount in held.items() if job_id not in captured)
    if isinstance(state, Open):
        assert state.available_micro_usd == sums.get("available", 0)


@given(STORIES)
def test_each_job_is_reserved_captured_and_released_at_most_once(commands: list[AccountCommand]) -> None:
    events, _ = lived(commands)
    for kind in (FundsReserved, FundsCaptured, FundsReleased):
        jobs = [event.job_id for event in events if isinstance(event, kind)]
        assert len(jobs) == len(set(jobs))
    attempts = [event.attempt_id for event in events if isinstance(event, UsageMetered)]
    assert len(attempts) == len(set(attempts))


@given(STORIES)
def test_a_capture_is_the_sum_of_the_usage_metered_before_it(commands: list[AccountCommand]) -> None:
    events, _ = lived(commands)
    metered: defaultdict[UUID, int] = defaultdict(int)
    for event in events:
        if isinstance(event, UsageMetered):
            metered[event.job_id] += event.amount_micro_usd
        elif isinstance(event, FundsCaptured):
            assert event.amount_micro_usd == metered[event.job_id]


@given(STORIES)
def test_all_that_was_metered_of_a_settled_job_is_charged_in_the_end(commands: list[AccountCommand]) -> None:
    events, _ = lived(commands)
    settled = {event.job_id for event in events if isinstance(event, FundsCaptured)}
    balance: defaultdict[UUID, int] = defaultdict(int)
    for event in events:
        if isinstance(event, UsageMetered):
            balance[event.job_id] += event.amount_micro_usd
        elif isinstance(event, FundsCaptured | LateUsageCharged):
            balance[event.job_id] -= event.amount_micro_usd
    assert {job_id: balance[job_id] for job_id in settled} == dict.fromkeys(settled, 0)


@given(STORIES)
def test_no_reservation_takes_the_account_below_its_floor(commands: list[AccountCommand]) -> None:
    events, _ = lived(commands)
    available = 0
    for event in events:
        available += sum(p.amount_micro_usd for p in postings(event) if p.ledger_account == "available")
        if isinstance(event, FundsReserved) and event.amount_micro_usd:
            assert available >= FLOOR


@given(STORIES, st.lists(st.integers(0, 24), max_size=8))
def test_doubled_commands_record_nothing_more(commands: list[AccountCommand], doubled: list[int]) -> None:
    twice = [again for place, command in enumerate(commands) for again in [command] * (1 + (place in doubled))]
    assert lived(twice)[0] == lived(commands)[0]


@given(st.integers(0, 10**7), st.integers(0, 10**9))
def test_a_cost_is_never_half_a_micro_dollar_away_from_the_exact_amount(seconds: int, price: int) -> None:
    exact = Fraction(seconds * price, 3600)
    difference = cost_micro_usd(seconds, price) - exact
    assert -Fraction(1, 2) < difference <= Fraction(1, 2)
