"""An account told in full: balances, and what each job moved. Pure; one pass over the month's events."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from services.billing.domain.account import AVAILABLE, RESERVED, SPENT
from shared.contracts.account import (
    AccountOpened,
    FundsCaptured,
    FundsRefused,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    UsageMetered,
)
from shared.contracts.job import Event


class JobMoney(msgspec.Struct, kw_only=True):
    """What one job moved, in micro-dollars. State: refused, held (not settled yet) or settled."""

    job_id: UUID
    state: str
    reserved_micro_usd: int = 0
    metered_micro_usd: int = 0
    captured_micro_usd: int = 0
    released_micro_usd: int = 0


class Statement(msgspec.Struct, kw_only=True):
    """One account. `balances` sum to zero, as every entry does."""

    owner: str
    month: str
    floor_micro_usd: int | None
    opened_at: datetime
    balances: dict[str, int]
    jobs: list[JobMoney]
    entries: int = 0


def statement(events: Iterable[Event]) -> Statement | None:
    """What an account's events add up to; None before it was opened."""
    told: Statement | None = None
    jobs: dict[UUID, JobMoney] = {}
    balances: defaultdict[str, int] = defaultdict(int, {AVAILABLE: 0, RESERVED: 0, SPENT: 0})
    entries = 0
    for event in events:
        if isinstance(event, AccountOpened):
            told = Statement(
                owner=event.owner,
                month=event.month,
                floor_micro_usd=event.floor_micro_usd,
                opened_at=event.opened_at,
                balances={},
                jobs=[],
            )
        if isinstance(event, FundsReserved | FundsCaptured | FundsReleased | LateUsageCharged):
            entries += len(event.postings)
            for posting in event.postings:
                balances[posting.ledger_account] += posting.amount_micro_usd
        _note(jobs, event)
    if told is None:
        return None
    told.balances, told.jobs, told.entries = dict(balances), list(jobs.values()), entries
    return told


def _note(jobs: dict[UUID, JobMoney], event: Event) -> None:
    match event:
        case FundsReserved():
            jobs[event.job_id] = JobMoney(job_id=event.job_id, state="held", reserved_micro_usd=event.amount_micro_usd)
        case FundsRefused():
            jobs.setdefault(event.job_id, JobMoney(job_id=event.job_id, state="refused"))
        case UsageMetered() if event.job_id in jobs:
            jobs[event.job_id].metered_micro_usd += event.amount_micro_usd
        case FundsCaptured() if event.job_id in jobs:
            jobs[event.job_id].state = "settled"
            jobs[event.job_id].captured_micro_usd = event.amount_micro_usd
        case LateUsageCharged() if event.job_id in jobs:
            jobs[event.job_id].captured_micro_usd += event.amount_micro_usd
        case FundsReleased() if event.job_id in jobs:
            jobs[event.job_id].released_micro_usd = event.amount_micro_usd
        case _:
            return
