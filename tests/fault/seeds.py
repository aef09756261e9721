"""What a seed stands for: its stories and its faults, the same every time; and one seed played on a running system."""

import asyncio
import functools
import random
import re
import time
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import DURABLES
from shared.eventstore.outages import OUTAGES
from shared.eventstore.rows import recorded
from tests.fault.faults import Armed, Kind, Scene
from tests.fault.fencing import stale_writes
from tests.fault.invariants import Observed, check
from tests.fault.reach import story_for
from tests.fault.steps import all_steps
from tests.fault.system import LEASE_S, FaultSystem, unrest
from tests.fault.workload import STORIES, RefusedError, play

FAULTS_PER_SEED = 3
DUEL_EVERY = 10
_LEASED = re.compile(r"query:provider_bridge\.\w*lease|append:attempt\.(leased|start_intended|accepted)|provider:")
_AT_BRIDGE = re.compile(r"(append:attempt\.|provider:|\w+:provider_bridge)")
REST_S = 180.0
_LOOK_S = 0.05
_KINDS: dict[str, tuple[Kind, ...]] = {
    "command": ("kill", "kill", "kill_after", "pause", "cut", "delay", "server"),
    "append": ("kill", "kill", "kill_after", "pause", "cut", "delay", "server"),
    "rows": ("kill", "kill", "kill_after", "pause", "cut", "delay", "server"),
    "relay": ("kill", "kill", "kill_after", "pause", "cut", "delay", "server"),
    "deliver": ("kill", "kill_after", "twice", "twice", "twice", "cut", "delay", "server"),
    "ack": ("kill", "kill_after", "cut", "delay", "server"),
    "provider": ("kill", "kill", "kill_after", "pause", "pause", "cut"),
    "query": ("kill", "kill_after", "pause", "cut", "delay", "server"),
    "http": ("kill", "kill", "kill_after", "pause", "cut", "delay", "server"),
}


_LOCK = "query:provider_bridge.lock_lease:before"
_SLOW_SUCCESSOR = Armed("append:attempt.leased.v1:committed", "delay", 2, 1.5)
_LATE_EVENT = {
    "job": "started",
    "attempt": "started",
    "dataset": "packed",
    "artifact": "stored",
    "account": "funds_captured",
}
"""Category -> an event that every job which starts has."""

KEPT_SEEDS = (-1, -2, -3)
"""Everything delivered twice; two bridges over one run; commits that take their time while others append."""


@dataclass(frozen=True, slots=True)
class Script:
    """A seed spelt out."""

    seed: int
    stories: tuple[str, ...]
    stagger_s: tuple[float, ...]
    faults: tuple[Armed, ...]


@dataclass(slots=True)
class Outcome:
    """How a seed went. `violations` is empty when every promise held."""

    script: Script
    scene: Scene
    job_ids: list[UUID] = field(default_factory=list[UUID])
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


@functools.cache
def reachable_steps() -> tuple[str, ...]:
    """Every step that a story reaches, in an order that mixes them, the same in every run."""
    steps = [step for step in all_steps() if story_for(step)]
    random.Random("the order of the steps").shuffle(steps)  # noqa: S311 - repeatable, not secret
    return tuple(steps)


def script_for(seed: int, *, least_jobs: int = 1) -> Script:
    """The seed's own steps come first, so that consecutive seeds go through all of them; each tenth is a duel."""
    if seed < 0:
        return _kept()[seed]
    dice = random.Random(f"fault {seed}")  # noqa: S311 - repeatable, not secret
    if seed % DUEL_EVERY == DUEL_EVERY - 1:
        return _duel(seed, dice)
    order = reachable_steps()
    first = FAULTS_PER_SEED * (seed - seed // DUEL_EVERY)
    steps = [order[(first + number) % len(order)] for number in range(FAULTS_PER_SEED)]
    stories = list(dict.fromkeys(story for step in steps if (story := story_for(step))))
    while len(stories) < least_jobs or (len(stories) < FAULTS_PER_SEED and dice.random() < 0.5):
        stories.append(dice.choice(list(STORIES)))
    return Script(
        seed=seed,
        stories=tuple(stories),
        stagger_s=tuple(round(dice.uniform(0, 0.15), 3) for _ in stories),
        faults=tuple(_armed(step, dice) for step in steps),
    )


def _duel(seed: int, dice: random.Random) -> Script:
    """Two bridges over one run: one sleeps past its lease, the other is slow after it has taken over."""
    places = [(_LOCK, nth) for nth in (1, 2, 3)] + [(step, 1) for step in sorted(reachable_steps()) if is_leased(step)]
    step, nth = places[seed // DUEL_EVERY % len(places)]
    sleeps = Armed(step, "pause", nth, round(LEASE_S + dice.uniform(0.3, 0.8), 3))
    return Script(seed, (story_for(step) or "completes",), (0.0,), (sleeps, _SLOW_SUCCESSOR))


def is_leased(step: str) -> bool:
    """Whether the bridge does this under a lease."""
    return _LEASED.match(step) is not None


def _kept() -> dict[int, Script]:
    """Scripts that catch, surely and at once, what a broken build does; they are played before every other seed."""
    again = [
        Armed(f"deliver:{durable.name}:{durable.categories[0]}.{_LATE_EVENT[durable.categories[0]]}.v1", "twice", 1, 0)
        for durable in DURABLES
    ]
    held = [
        Armed(f"append:{type_}.v1:before-commit", "delay", nth, 0.4)
        for type_ in ("job.dispatched", "attempt.leased", "attempt.accepted")
        for nth in (1, 2)
    ]
    duel = _duel(DUEL_EVERY - 1, random.Random("the first duel"))  # noqa: S311 - repeatable, not secret
    scripts = (
        Script(-1, ("saves", "cancelled_running"), (0.0, 0.1), tuple(again)),
        Script(-2, duel.stories, duel.stagger_s, duel.faults),
        Script(-3, ("completes", "saves", "fails"), (0.0, 0.05, 0.1), tuple(held)),
    )
    return {script.seed: script for script in scripts}


def _armed(step: str, dice: random.Random) -> Armed:
    kind = dice.choice(_KINDS[step.partition(":")[0]])
    nth = 1 if dice.random() < 0.9 else 2
    for_s = dice.uniform(0.05, 0.4)
    if kind == "pause":
        for_s = LEASE_S + dice.uniform(0.3, 0.8) if _AT_BRIDGE.match(step) else dice.uniform(0.5, 1.2)
    return Armed(step, kind, nth, round(for_s, 3))


async def play_seed(system: FaultSystem, script: Script, *, since: int, rebuild: bool) -> Outcome:
    """Plays a seed up to rest and asks whether every promise held."""
    began = time.monotonic()
    armed = [Armed(fault.step, fault.kind, fault.nth, fault.for_s) for fault in script.faults]
    outcome = Outcome(script, system.director.begin(armed))
    try:
        outcome.job_ids = await play(system, script.seed, script.stories, script.stagger_s)
        outcome.violations += await _rest(system, outcome.job_ids)
    except* RefusedError as refusals:
        outcome.violations += [str(refusal) for refusal in refusals.exceptions]
    system.director.disarm()
    await system.director.calm()
    if not outcome.violations:
        await system.ready()
        outcome.violations += await check(
            Observed(
                superuser_dsn=system.superuser_dsn,
                gateway_url=system.gateway_url,
                bridge_state_dir=system.bridge_state_dir,
                job_ids=outcome.job_ids,
                since=since,
                rebuild=rebuild,
            )
        )
        outcome.violations += stale_writes(await _history(system, since))
    outcome.violations += system.fleet.complaints()
    outcome.seconds = time.monotonic() - began
    return outcome


async def _rest(system: FaultSystem, job_ids: list[UUID]) -> list[str]:
    """Waits until nothing is left to happen; what still is, after REST_S."""
    deadline = time.monotonic() + REST_S
    left = ["Postgres does not answer"]
    while time.monotonic() < deadline:
        try:
            connection = await asyncpg.connect(system.superuser_dsn, timeout=5)
            try:
                while (left := await unrest(connection, job_ids)) and time.monotonic() < deadline:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
            finally:
                connection.terminate()
            break
        except OUTAGES:
            await asyncio.sleep(_LOOK_S)
    return left


async def _history(system: FaultSystem, since: int) -> list[RecordedEvent]:
    connection = await asyncpg.connect(system.superuser_dsn)
    try:
        rows = await connection.fetch(
            "select * from log.events where global_position > $1 order by global_position", since
        )
    finally:
        await connection.close()
    return [recorded(row) for row in rows]
