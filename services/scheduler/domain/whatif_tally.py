"""Stories counted up: waits, money, and how evenly both fell. The same for what happened and for what would have."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from services.scheduler.domain.whatif_story import Story, Visit
from shared.contracts.job import PRIORITY_NAMES
from shared.contracts.whatif import Told, Usage, UserShare, WaitStats

MAX_USERS = 100
_SECOND = timedelta(seconds=1)


class _User(msgspec.Struct):
    """What one user got so far."""

    jobs: int = 0
    waits: list[float] = []
    slot_s: float = 0.0


def wait_s(story: Story, until: datetime) -> float | None:
    """How long the job waited for slots in all, up to `until`; None if it never was in the queue."""
    return sum(_visit_wait_s(story, visit, until) for visit in story.visits) if story.visits else None


def outcome_word(story: Story) -> str:
    """How it ended, or where it is."""
    if story.outcome is not None:
        return story.outcome
    if not story.visits:
        return "preparing"
    if story.holds:
        return "running"
    return "queued" if story.visits[-1].dispatched is None else "completing"


def usages(stories: Iterable[Story], *, at_recorded_price: bool) -> list[Usage]:
    """The billed attempts by user, like ones counted together. Otherwise their price is to be looked up."""
    counted: Counter[tuple[str, str, int, int | None]] = Counter()
    for story in stories:
        price = story.price_micro_usd_per_hour if at_recorded_price else None
        for visit in story.visits:
            if visit.billed_seconds is not None and visit.released is not None:
                counted[story.user_id, story.provider, visit.billed_seconds, price] += 1
    return [
        Usage(group=user_id, provider=provider, seconds=seconds, price_micro_usd_per_hour=price, count=count)
        for (user_id, provider, seconds, price), count in counted.items()
    ]


def tally(stories: Sequence[Story], until: datetime, costs: Mapping[str, int]) -> Told:
    """Everything about these jobs up to `until`; `costs` are micro-dollars by user."""
    outcomes = Counter(outcome_word(story) for story in stories)
    users: defaultdict[str, _User] = defaultdict(_User)
    by_priority: defaultdict[int, list[float]] = defaultdict(list)
    for story in stories:
        user = users[story.user_id]
        user.jobs += 1
        user.slot_s += _slot_s(story, until)
        waited = wait_s(story, until)
        if waited is not None:
            user.waits.append(waited)
            by_priority[story.priority].append(waited)
    shares = sorted((_share(user_id, user, costs) for user_id, user in users.items()), key=_by_slots)
    ended = sum(outcomes[word] for word in ("completed", "failed", "cancelled"))
    return Told(
        jobs=len(stories),
        completed=outcomes["completed"],
        failed=outcomes["failed"],
        cancelled=outcomes["cancelled"],
        open=len(stories) - ended,
        waiting=outcomes["queued"],
        attempts=sum(story.attempts_made for story in stories),
        slot_seconds=sum(share.slot_seconds for share in shares),
        cost_micro_usd=sum(costs.values()),
        wait=stats([waited for user in users.values() for waited in user.waits]),
        wait_by_priority={
            PRIORITY_NAMES.get(priority, str(priority)): stats(waits)
            for priority, waits in sorted(by_priority.items(), reverse=True)
        },
        users=shares[:MAX_USERS],
        users_total=len(shares),
        fairness_wait=jain([share.mean_wait_s for share in shares]),
        fairness_slot_seconds=jain([share.slot_seconds for share in shares]),
    )


def stats(waits: Sequence[float]) -> WaitStats:
    """Percentiles are waits that occurred (nearest rank)."""
    if not waits:
        return WaitStats(jobs=0, mean_s=0, median_s=0, p95_s=0, max_s=0)
    ranked = sorted(waits)
    count = len(ranked)
    return WaitStats(
        jobs=count,
        mean_s=round(sum(ranked) / count, 3),
        median_s=round(ranked[-(-count // 2) - 1], 3),
        p95_s=round(ranked[-(-count * 95 // 100) - 1], 3),
        max_s=round(ranked[-1], 3),
    )


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return round(sum(shares) ** 2 / (len(shares) * squares), 4) if squares else 1.0


def _share(user_id: str, user: _User, costs: Mapping[str, int]) -> UserShare:
    mean_s = sum(user.waits) / len(user.waits) if user.waits else 0.0
    return UserShare(
        user_id=user_id,
        jobs=user.jobs,
        mean_wait_s=round(mean_s, 3),
        slot_seconds=round(user.slot_s),
        cost_micro_usd=costs.get(user_id, 0),
    )


def _by_slots(share: UserShare) -> tuple[int, str]:
    return (-share.slot_seconds, share.user_id)


def _visit_wait_s(story: Story, visit: Visit, until: datetime) -> float:
    left = visit.dispatched or story.ended
    return max(((left.at if left else until) - visit.queued.at) / _SECOND, 0.0)


def _slot_s(story: Story, until: datetime) -> float:
    held = 0.0
    for visit in story.visits:
        if visit.dispatched is not None:
            held += ((visit.released.at if visit.released else until) - visit.dispatched.at) / _SECOND
    return held
