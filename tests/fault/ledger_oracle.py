"""What every job must have cost, computed a second time: from the events of jobs and attempts alone.

Knows nothing of services/billing. Money is in micro-dollars; machine time is whole seconds, the last one begun counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from uuid import UUID

import msgspec

from shared.contracts.account import (
    FundsCaptured,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    Posting,
    UsageMetered,
)
from shared.contracts.attempt import AttemptRequested, AttemptStarted
from shared.contracts.job import JobFundsReserved
from tests.fault.rules import ATTEMPT_ENDS, JOB_ENDS, Fact


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt that has ended used, and where its end stands."""

    seconds: int
    price_micro_usd_per_hour: int
    ended_position: int

    @property
    def amount_micro_usd(self) -> int:
        """Rounded once, half up."""
        return floor(Fraction(self.seconds * self.price_micro_usd_per_hour, 3600) + Fraction(1, 2))


class Booked(msgspec.Struct, kw_only=True):
    """What the ledger says of one job."""

    reserved: list[FundsReserved] = []
    metered: dict[UUID, UsageMetered] = {}
    captured: list[FundsCaptured] = []
    late: list[LateUsageCharged] = []
    released: list[FundsReleased] = []
    postings: list[Posting] = []


def ledger(facts: Sequence[Fact]) -> list[str]:
    """Violations of the ledger: postings that do not sum to zero, and every amount that differs from ours."""
    booked = _booked(facts)
    usages = _usages(facts)
    ends = {fact.job_id: fact.position for fact in facts if isinstance(fact.event, JOB_ENDS)}
    told = {fact.job_id: fact.event for fact in facts if isinstance(fact.event, JobFundsReserved)}
    found = _unbalanced(facts) + _metered_twice(facts)
    for job_id, reservation in told.items():
        given = [(one.amount_micro_usd, one.price_micro_usd_per_hour) for one in booked[job_id].reserved]
        if given != [(reservation.reserved_micro_usd, reservation.price_micro_usd_per_hour)]:
            found.append(f"job-{job_id} was told of a reservation of {reservation.reserved_micro_usd}; booked: {given}")
    for job_id, books in list(booked.items()):
        found += [f"job-{job_id}: {text}" for text in _job(books, usages[job_id], ends.get(job_id))]
    return found


def _booked(facts: Sequence[Fact]) -> defaultdict[UUID, Booked]:
    booked: defaultdict[UUID, Booked] = defaultdict(Booked)
    for fact in facts:
        match fact.event:
            case FundsReserved() as event:
                booked[event.job_id].reserved.append(event)
                booked[event.job_id].postings += event.postings
            case UsageMetered() as event:
                booked[event.job_id].metered[event.attempt_id] = event
            case FundsCaptured() as event:
                booked[event.job_id].captured.append(event)
                booked[event.job_id].postings += event.postings
            case LateUsageCharged() as event:
                booked[event.job_id].late.append(event)
                booked[event.job_id].postings += event.postings
            case FundsReleased() as event:
                booked[event.job_id].released.append(event)
                booked[event.job_id].postings += event.postings
            case _:
                continue
    return booked


def _usages(facts: Sequence[Fact]) -> defaultdict[UUID, dict[UUID, Usage]]:
    """Job -> attempt -> usage. An attempt that nobody requested (a cancel came first) uses nothing and has no price."""
    usages: defaultdict[UUID, dict[UUID, Usage]] = defaultdict(dict)
    requested = {fact.owner_id: fact.event for fact in facts if isinstance(fact.event, AttemptRequested)}
    started = {fact.owner_id: fact.event.started_at for fact in facts if isinstance(fact.event, AttemptStarted)}
    for fact in facts:
        if isinstance(fact.event, ATTEMPT_ENDS) and fact.owner_id in requested:
            begun = started.get(fact.owner_id)
            seconds = ceil((fact.event.ended_at - begun).total_seconds()) if begun else 0
            request = requested[fact.owner_id]
            usages[request.job_id][fact.owner_id] = Usage(
                seconds=max(0, seconds),
                price_micro_usd_per_hour=request.quote.price_micro_usd_per_hour,
                ended_position=fact.position,
            )
    return usages


def _unbalanced(facts: Sequence[Fact]) -> list[str]:
    found: list[str] = []
    for fact in facts:
        if isinstance(fact.event, FundsReserved | FundsCaptured | FundsReleased | LateUsageCharged):
            total = sum(posting.amount_micro_usd for posting in fact.event.postings)
            found += [f"the postings at position {fact.position} sum to {total}"] if total else []
    return found


def _metered_twice(facts: Sequence[Fact]) -> list[str]:
    seen: set[UUID] = set()
    found: list[str] = []
    for fact in facts:
        if isinstance(fact.event, UsageMetered):
            if fact.event.attempt_id in seen:
                found.append(f"attempt-{fact.event.attempt_id} was metered again at position {fact.position}")
            seen.add(fact.event.attempt_id)
    return found


def _job(books: Booked, usages: dict[UUID, Usage], end: int | None) -> list[str]:
    found = [f"was reserved {len(books.reserved)} times"] if len(books.reserved) != 1 else []
    found += _usage_differences(books, usages)
    if end is None:
        return found + (["was charged before it ended"] if books.captured else [])
    if len(books.captured) != 1:
        return [*found, f"ended and was charged {len(books.captured)} times"]
    reserved = sum(one.amount_micro_usd for one in books.reserved)
    # What ended after the job is charged by itself; a capture is final.
    cost = sum(usage.amount_micro_usd for usage in usages.values() if usage.ended_position < end)
    late = sum(usage.amount_micro_usd for usage in usages.values() if usage.ended_position > end)
    captured = books.captured[0].amount_micro_usd
    released = sum(one.amount_micro_usd for one in books.released)
    if not cost <= captured <= cost + late:
        found.append(f"was charged {captured}, not {cost}")
    if released != max(0, reserved - captured):
        found.append(f"got {released} back, not {max(0, reserved - captured)}")
    spent = captured + sum(one.amount_micro_usd for one in books.late)
    metered = sum(one.amount_micro_usd for one in books.metered.values())
    if spent != metered:
        found.append(f"was charged {spent} in all, and {metered} were metered")
    balances: defaultdict[str, int] = defaultdict(int)
    for posting in books.postings:
        balances[posting.ledger_account] += posting.amount_micro_usd
    wanted = {"available": -spent, "reserved": 0, "spent": spent}
    if any(balances.get(account, 0) != amount for account, amount in wanted.items()):
        found.append(f"left balances {dict(balances)}, not {wanted}")
    return found


def _usage_differences(books: Booked, usages: dict[UUID, Usage]) -> list[str]:
    found = [
        f"attempt-{attempt_id} was metered and has not ended, or was never requested"
        for attempt_id in books.metered.keys() - usages.keys()
    ]
    for attempt_id, usage in usages.items():
        metered = books.metered.get(attempt_id)
        if metered is None:
            found.append(f"attempt-{attempt_id} ended and was not metered")
        elif (metered.seconds, metered.amount_micro_usd) != (usage.seconds, usage.amount_micro_usd):
            ours = f"{usage.seconds} s, {usage.amount_micro_usd}"
            found.append(f"attempt-{attempt_id}: {metered.seconds} s, {metered.amount_micro_usd} metered; ours: {ours}")
    return found
