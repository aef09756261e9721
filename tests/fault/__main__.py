"""`python -m tests.fault`: plays seeds against the real system and says what was hit and what broke."""

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import uvloop

from tests.fault.reach import reason_against
from tests.fault.seeds import KEPT_SEEDS, Outcome, Script, play_seed, script_for
from tests.fault.steps import all_steps
from tests.fault.system import FaultSystem, running_system

DEFAULT_SEEDS = 200
REBUILD_EVERY = 25


def say(text: str = "") -> None:
    """One line for the person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """0 when every promise held in every seed."""
    parser = argparse.ArgumentParser(prog="just fault", description=__doc__)
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="how many seeds to play")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one seed alone, on a fresh system")
    parser.add_argument("--keep-going", action="store_true", help="go on after a seed that failed")
    parser.add_argument("--jobs", type=int, default=1, help="how many jobs a seed plays at least; a duel has one")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no seed after so long")
    parser.add_argument("--trace", action="store_true", help="print the steps of seeds that hold, too")
    given = parser.parse_args(arguments)
    seeds = [*KEPT_SEEDS, *range(given.first, given.first + given.seeds)] if given.seed is None else [given.seed]
    home = Path(tempfile.mkdtemp(prefix="tw-fault-"))
    home.chmod(0o711)
    run = Run(
        home=home,
        scripts=[script_for(seed, least_jobs=given.jobs) for seed in seeds],
        keep_going=given.keep_going,
        trace=given.trace,
        limit_s=given.minutes * 60,
    )
    try:
        uvloop.run(run.play())
    finally:
        report(run.outcomes)
    if any(outcome.violations for outcome in run.outcomes):
        say(f"\nThe logs of every process are in {home}/system-*/logs")
        return 1
    shutil.rmtree(home)
    return 0


@dataclass(slots=True, kw_only=True)
class Run:
    """Plays scripts on one system; one that fails ends it, and the next one gets a fresh system."""

    home: Path
    scripts: Sequence[Script]
    keep_going: bool = False
    trace: bool = False
    limit_s: float = math.inf
    """After so long no further script is begun."""
    outcomes: list[Outcome] = field(default_factory=list[Outcome])

    async def play(self) -> None:
        """Returns when every script is played, or it must not go on."""
        ends_at = time.monotonic() + self.limit_s
        while len(self.outcomes) < len(self.scripts) and time.monotonic() < ends_at:
            async with running_system(self.home / f"system-{len(self.outcomes)}") as system:
                await self._play_until_failure(system, ends_at)
            if not self.keep_going and any(outcome.violations for outcome in self.outcomes):
                return

    async def _play_until_failure(self, system: FaultSystem, ends_at: float) -> None:
        since = 0
        for number, script in list(enumerate(self.scripts, start=1))[len(self.outcomes) :]:
            rebuild = number % REBUILD_EVERY == 0 or number == len(self.scripts)
            outcome = await play_seed(system, script, since=since, rebuild=rebuild)
            self.outcomes.append(outcome)
            say(summary(outcome))
            if outcome.violations or self.trace:
                await explain(system, outcome)
            if outcome.violations or time.monotonic() > ends_at:
                return
            since = await head(system)


def summary(outcome: Outcome) -> str:
    """One line of a seed."""
    armed = outcome.scene.armed
    hit = sum(bool(fault.process) for fault in armed)
    verdict = "FAILED" if outcome.violations else "ok"
    return f"seed {outcome.script.seed:>5}  {outcome.seconds:6.1f} s  {hit} of {len(armed)} faults  {verdict}"


async def head(system: FaultSystem) -> int:
    """The log's highest position."""
    connection = await asyncpg.connect(system.superuser_dsn)
    try:
        return int(await connection.fetchval("select coalesce(max(global_position), 0) from log.events"))
    finally:
        await connection.close()


async def explain(system: FaultSystem, outcome: Outcome) -> None:
    """Everything there is to know of a seed that failed."""
    script = outcome.script
    say(f"\n==== seed {script.seed}: {', '.join(script.stories)}")
    for violation in outcome.violations:
        say(f"  VIOLATION  {violation}")
    say("\n  faults:")
    for fault in outcome.scene.armed:
        say(f"    {fault}")
    say("\n  steps:")
    for seen in outcome.scene.trace:
        say(f"    {seen}")
    say("\n  the log:")
    connection = await asyncpg.connect(system.superuser_dsn)
    try:
        rows = await connection.fetch(
            "select global_position, type, stream, correlation_id from log.events"
            " where correlation_id = any($1::uuid[]) order by global_position",
            outcome.job_ids,
        )
    finally:
        await connection.close()
    for row in rows:
        say(f"    {row['global_position']:>6}  {row['type']:<32} {row['stream']}  of {row['correlation_id']}")
    say(f"\n  repeat it:  just fault --seed={script.seed} --jobs={len(script.stories)}\n")


def report(outcomes: Sequence[Outcome]) -> None:
    """Steps hit of steps known, what was never hit and why, and the faults by kind."""
    known = all_steps()
    struck = [fault for outcome in outcomes for fault in outcome.scene.armed if fault.process]
    hit = {fault.step for fault in struck}
    reached = Counter[str]()
    for outcome in outcomes:
        reached.update(outcome.scene.reached)
    open_steps = [step for step in known if step not in hit and reason_against(step) is None]
    reasons = Counter(reason for step in known if (reason := reason_against(step)))
    say(f"\n{len(outcomes)} seeds, {sum(bool(outcome.violations) for outcome in outcomes)} failed")
    say(f"steps hit / steps known: {len(hit)} / {len(known)}; out of reach: {sum(reasons.values())}")
    for reason, count in sorted(reasons.items()):
        say(f"  {count:>4} out of reach: {reason}")
    for step in open_steps:
        say(f"  not hit: {step} ({'reached' if reached[step] else 'never reached'})")
    say("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(f.kind for f in struck).items())))
    unknown = sorted(step for step in reached if step not in set(known))
    if unknown:
        say(f"steps seen that are not known: {unknown}")


if __name__ == "__main__":
    began = time.monotonic()
    code = main(sys.argv[1:])
    say(f"{time.monotonic() - began:.0f} s")
    raise SystemExit(code)
