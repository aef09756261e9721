"""Seeds of the simulation: what services promise holds under every fault, and a seed can be told again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import coverage, kept_seeds, quiet, run_chunk
from tests.sim.simulation import simulate
from tests.sim.steps import known_steps

_ROOT = Path(__file__).resolve().parents[2]
_GROUPS = 4
_SEEDS_PER_GROUP = 10
_FIRST = 1_000_000


def _run(seeds: list[int]) -> set[str]:
    chunk = run_chunk(seeds)
    told = [f"python -m tests.sim --seed {seed}: {line}" for seed, lines in chunk.failures for line in lines]
    assert told == []
    return chunk.steps


@pytest.mark.parametrize("group", range(_GROUPS))
def test_no_promise_breaks_under_any_fault(group: int) -> None:
    """Every invariant of tests/sim/invariants.py; and no step is passed that the coverage does not know."""
    first = _FIRST + group * _SEEDS_PER_GROUP
    steps = _run(list(range(first, first + _SEEDS_PER_GROUP)))
    assert steps - known_steps() == set()


def test_what_once_broke_holds() -> None:
    _run(kept_seeds())


def test_the_same_seed_gives_the_same_history() -> None:
    """Byte for byte, in another process with other hash seeds too: a failure can be looked at again."""
    quiet()
    here = [simulate(seed).fingerprint for seed in (5, 20186)]
    program = "from tests.sim.__main__ import quiet; from tests.sim.simulation import simulate; quiet(); "
    program += "print(*[simulate(seed).fingerprint for seed in (5, 20186)])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == here


def test_steps_that_were_not_passed_are_named() -> None:
    told = coverage({"append:job.submitted.v1"})
    assert told.startswith("steps hit / steps known: 1 / ")
    assert "never hit: append:job.queued.v1" in told
