"""`python -m tests.sim`: thousands of seeds beside each other; what was passed, and what broke.

python -m tests.sim --seeds 10000 --from 0    10 000 seeds, the kept ones first
python -m tests.sim --seed 20186                one seed: its faults, its history, what it broke
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import structlog

from tests.sim.simulation import Outcome, simulate
from tests.sim.steps import known_steps

KEPT = Path(__file__).with_name("kept_seeds.txt")
_CHUNK = 50
_SHOWN_FAILURES = 5


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What some seeds came to."""

    seeds: int
    events: int
    steps: set[str]
    failures: list[tuple[int, list[str]]]


def kept_seeds() -> list[int]:
    """The seeds that once found something."""
    lines = KEPT.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def quiet(level: int = logging.CRITICAL) -> None:
    """The services' own log lines stay unwritten."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def run_chunk(seeds: Sequence[int]) -> Chunk:
    """Runs some seeds in this process."""
    quiet()
    outcomes = [simulate(seed) for seed in seeds]
    return Chunk(
        seeds=len(outcomes),
        events=sum(len(outcome.history) for outcome in outcomes),
        steps=set[str]().union(*(outcome.steps for outcome in outcomes)),
        failures=[(outcome.seed, outcome.violations) for outcome in outcomes if outcome.violations],
    )


def show(outcome: Outcome) -> str:
    """Everything that one needs to understand a seed."""
    history = [
        f"{event.global_position:6} {event.recorded_at:%H:%M:%S.%f} {event.stream} {event.stream_version} {event.type}"
        for event in outcome.history
    ]
    verdict = [f"broken: {line}" for line in outcome.violations] or ["nothing is broken"]
    faults = ["", "faults (virtual seconds):", *outcome.trace]
    repeat = ["", f"fingerprint {outcome.fingerprint}", f"repeat it: python -m tests.sim --seed {outcome.seed}"]
    return "\n".join([f"seed {outcome.seed}", *verdict, *faults, "", "history:", *history, *repeat])


def main(arguments: Sequence[str]) -> int:
    """0 when nothing broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many seeds (default 10 000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (default 0)")
    parser.add_argument("--seed", type=int, help="only this one, shown in full")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--verbose", action="store_true", help="with --seed: the services' log lines too")
    wanted = parser.parse_args(arguments)
    if wanted.seed is not None:
        quiet(logging.DEBUG if wanted.verbose else logging.CRITICAL)
        outcome = simulate(wanted.seed)
        sys.stdout.write(show(outcome) + "\n")
        return 1 if outcome.violations else 0
    return _run_many([*kept_seeds(), *range(wanted.first, wanted.first + wanted.seeds)], wanted.processes)


def _run_many(seeds: Sequence[int], processes: int) -> int:
    began = time.monotonic()
    failures: list[tuple[int, list[str]]] = []
    steps: set[str] = set()
    done = events = 0
    for chunk in _chunks(seeds, processes):
        done, events = done + chunk.seeds, events + chunk.events
        failures += chunk.failures
        steps |= chunk.steps
        rate = done / (time.monotonic() - began)
        for seed, violations in chunk.failures:
            sys.stdout.write(f"seed {seed} is broken: {'; '.join(violations)}\n")
        sys.stdout.write(f"{done} of {len(seeds)} seeds, {rate:.1f} a second, {len(failures)} broken\n")
        sys.stdout.flush()
    sys.stdout.write(f"{done} seeds, {events} events, {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(coverage(steps))
    for seed, _ in failures[:_SHOWN_FAILURES]:
        sys.stdout.write("\n" + show(simulate(seed)) + "\n")
    if failures:
        sys.stdout.write(f"\nbroken seeds: {' '.join(str(seed) for seed, _ in failures)}\n")
    return 1 if failures else 0


def _chunks(seeds: Sequence[int], processes: int) -> Iterator[Chunk]:
    parts = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    quiet()
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_chunk, parts)


def coverage(steps: set[str]) -> str:
    """Steps hit of steps known, and the others by name."""
    known = known_steps()
    missed = sorted(known - steps)
    lines = [
        f"steps hit / steps known: {len(known & steps)} / {len(known)}",
        *(f"  never hit: {step}" for step in missed),
    ]
    strange = sorted(step for step in steps - known)
    return "\n".join([*lines, *(f"  not known: {step}" for step in strange)]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
