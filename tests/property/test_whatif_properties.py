"""What-if over any month: the unchanged policy gives history again, another one keeps its own limits."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain.queue_policy import Limits, Order, RunningJob, WaitingJob, admit
from services.scheduler.domain.whatif_line import Line
from services.scheduler.domain.whatif_story import Stories, Story
from shared.contracts.job import JobDispatched, JobWaitExplained
from shared.contracts.whatif import Policy, PolicyLimits, PolicyRetry
from tests.support.month import Shape, a_month
from tests.support.whatif import asked

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ORDERS = st.sampled_from(["priority", "fifo", "fair_share"])

LIMITS = st.builds(Limits, in_all=st.integers(1, 5), per_user=st.integers(1, 3))
SHAPES = st.builds(
    Shape,
    jobs=st.integers(1, 40),
    days=st.floats(0.02, 0.5),
    users=st.integers(1, 4),
    limits=LIMITS,
    later_limits=st.none() | LIMITS,
    failing=st.sampled_from([0.0, 0.3, 0.7]),
    cancelled=st.sampled_from([0.0, 0.2, 0.6]),
    median_hold_s=st.sampled_from([1.0, 60.0, 1800.0]),
    round_s=st.sampled_from([0.008, 20.0, 300.0]),
    has_basis=st.booleans(),
    has_accounts=st.just(value=False),
).map(lambda shape: shape if shape.has_basis else msgspec.structs.replace(shape, later_limits=None))
"""Without a basis nothing tells that the limits were changed."""
POLICIES = st.builds(
    Policy,
    order=ORDERS,
    limits=st.builds(
        PolicyLimits,
        in_all=st.integers(1, 6),
        per_user=st.integers(1, 4),
        of_users=st.dictionaries(st.sampled_from(["user-01", "user-02"]), st.integers(0, 3)),
    ),
    retry=st.builds(PolicyRetry, base_delay_s=st.integers(0, 60), max_attempts=st.none() | st.integers(1, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), SHAPES)
def test_the_unchanged_policy_reproduces_every_decision(seed: int, shape: Shape) -> None:
    """Cancels and other commits between what a round saw and what it wrote included."""
    events = a_month(seed, shape)
    told = asked(events, limits=shape.limits).report({}, {}, 0.0)
    assert told.decisions.first_difference is None
    assert told.decisions.reproduced == told.decisions.recorded
    written = sum(isinstance(past.event, JobDispatched | JobWaitExplained) for past in events)
    assert told.decisions.recorded - told.decisions.retries == written
    assert told.what_if == told.happened


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.data())
def test_a_window_reproduces_what_was_decided_in_it(seed: int, shape: Shape, data: st.DataObject) -> None:
    events = a_month(seed, shape)
    after = data.draw(st.integers(0, len(events)))
    decisions = asked(events, limits=shape.limits, after_position=after).report({}, {}, 0.0).decisions
    assert decisions.first_difference is None
    assert decisions.reproduced == decisions.recorded


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), SHAPES, POLICIES)
def test_another_policy_never_gives_more_slots_than_it_has(seed: int, shape: Shape, policy: Policy) -> None:
    events = a_month(seed, msgspec.structs.replace(shape, has_basis=True))
    what_if = asked(events, policy, limits=shape.limits, is_free=True)
    limits = Limits(
        in_all=policy.limits.in_all or 0,
        per_user=policy.limits.per_user or 0,
        of_users=policy.limits.of_users,
    )
    assert_within(what_if.other_stories, limits)
    for story in what_if.other_stories.values():
        assert story.attempts_made <= (policy.retry.max_attempts or story.max_attempts)
        assert_in_order(story)


def assert_within(stories: Stories, limits: Limits) -> None:
    changes: list[tuple[datetime, int, str]] = []
    for story in stories.values():
        for visit in story.visits:
            if visit.dispatched is not None:
                changes.append((visit.dispatched.at, 1, story.user_id))
                if visit.released is not None:
                    changes.append((visit.released.at, -1, story.user_id))
    held: Counter[str] = Counter()
    for _, change, user_id in sorted(changes, key=lambda one: one[:2]):  # what is freed at a moment may be given then
        held[user_id] += change
        assert held[user_id] <= limits.of(user_id)
        assert held.total() <= limits.in_all


def assert_in_order(story: Story) -> None:
    for visit in story.visits:
        if visit.dispatched is not None:
            assert visit.queued.at <= visit.dispatched.at
            assert visit.not_before is None or visit.not_before <= visit.dispatched.at
            assert visit.released is None or visit.dispatched.at <= visit.released.at
    if story.ended is not None and story.visits:
        assert not story.holds


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[WaitingJob], list[RunningJob]]:
    users = st.sampled_from(["alice", "bob", "carol"])
    waiting = [
        WaitingJob(
            job_id=UUID(int=number),
            user_id=draw(users),
            priority=draw(st.sampled_from([0, 10, 40])),
            queued_at=NOW - timedelta(seconds=draw(st.integers(0, 3))),
            position=number,
        )
        for number in range(1, draw(st.integers(0, 20)) + 1)
    ]
    running = [
        RunningJob(job_id=UUID(int=100 + number), user_id=draw(users)) for number in range(draw(st.integers(0, 6)))
    ]
    return draw(st.permutations(waiting)), running


@given(lines(), LIMITS, ORDERS, st.dictionaries(st.sampled_from(["alice", "bob"]), st.integers(0, 4)))
def test_a_round_over_the_candidates_gives_what_one_over_everybody_gives(
    queue: tuple[list[WaitingJob], list[RunningJob]], limits: Limits, order: Order, of_users: dict[str, int]
) -> None:
    waiting, running = queue
    limits = msgspec.structs.replace(limits, of_users=of_users)
    line = Line(order)
    for job in waiting:
        line.add(job)
    held = Counter(job.user_id for job in running)
    able = line.candidates(limits, held, limits.in_all - len(running))
    whole = admit(waiting, running, limits, NOW, order).dispatches
    assert admit(able, running, limits, NOW, order).dispatches == whole
    for placed in whole:
        line.drop(placed.job.job_id)
    assert len(line) == len(waiting) - len(whole)
