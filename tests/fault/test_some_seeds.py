"""A few seeds of `just fault` in every test run, and the tables that keep a new step from being forgotten."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.contracts.catalogue import EVENT_TYPES
from tests.fault.__main__ import Run
from tests.fault.reach import (
    COMMAND_STORY,
    EVENT_STORY,
    HTTP_STORY,
    OUT_OF_REACH,
    PROVIDER_STORY,
    reason_against,
    story_for,
)
from tests.fault.seeds import KEPT_SEEDS, reachable_steps, script_for
from tests.fault.steps import PROVIDER_ACTS, PROVIDER_LOOKS, all_steps, provider_methods
from tests.fault.workload import STORIES

SEEDS = (*KEPT_SEEDS, *range(2))


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A short path that the user who runs Postgres for root can enter."""
    path = Path(tempfile.mkdtemp(prefix="tw-fault-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_promise_holds_whatever_fault_hits_the_first_steps(short_home: Path) -> None:
    run = Run(home=short_home, scripts=[script_for(seed) for seed in SEEDS])
    await run.play()
    assert [(outcome.script.seed, outcome.violations) for outcome in run.outcomes] == [(seed, []) for seed in SEEDS]
    assert sum(bool(fault.process) for outcome in run.outcomes for fault in outcome.scene.armed) >= len(SEEDS)


def test_every_step_is_reached_by_a_story_or_left_out_for_a_reason() -> None:
    """A new event, command, durable, route or provider method stops here until it has its place in reach.py."""
    assert [step for step in all_steps() if story_for(step) is None and reason_against(step) is None] == []


def test_no_step_comes_twice_and_no_reason_is_left_over() -> None:
    steps = all_steps()
    assert len(steps) == len(set(steps))
    used = {reason_against(step) for step in steps}
    assert [reason for _, reason in OUT_OF_REACH if reason not in used] == []


def test_the_tables_name_nothing_that_is_gone() -> None:
    assert set(EVENT_STORY) <= set(EVENT_TYPES)
    stories = {*EVENT_STORY.values(), *COMMAND_STORY.values(), *HTTP_STORY.values(), *PROVIDER_STORY.values()}
    assert stories <= set(STORIES)


def test_every_method_of_the_provider_either_acts_or_looks() -> None:
    assert provider_methods() == set(PROVIDER_ACTS) | PROVIDER_LOOKS


def test_a_seed_is_the_same_script_every_time_and_many_seeds_arm_every_step() -> None:
    assert script_for(7) == script_for(7)
    armed = {fault.step for seed in range(200) for fault in script_for(seed).faults}
    assert armed == set(reachable_steps())
