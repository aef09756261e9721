"""One seed from beginning to rest: the installation, the people, the faults, and what must hold at the end."""

import asyncio
import gc
import hashlib
from collections.abc import Callable, Sequence

import msgspec

from shared.contracts.envelope import RecordedEvent
from shared.ids import ids_from
from tests.sim.chaos import Chaos
from tests.sim.invariants import violations
from tests.sim.loop import VirtualLoop
from tests.sim.system import System
from tests.sim.twins import load
from tests.sim.workload import draw_people, draw_setup

load()

FAULTS_UNTIL_S = 60.0
HORIZON_S = 1500.0
_LOOK_EVERY_S = 2.0
_STORMS = 0.15
"""How often a run has each of them."""
_STILL_LOOKS = 3
"""How often in a row the same log must be found at rest."""
_AWAY_S = (0.3, 20.0)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed did: violations in words, the history, the faults, and the steps that were passed."""

    seed: int
    violations: list[str]
    history: Sequence[RecordedEvent]
    trace: list[str]
    steps: set[str]
    ended_s: float

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every event's hash and the trace: the same for the same seed and code."""
        digest = hashlib.sha256()
        for event in self.history:
            digest.update(event.hash)
        digest.update("\n".join(self.trace).encode())
        return digest.hexdigest()


def simulate(seed: int) -> Outcome:
    """Runs a seed; whatever goes wrong, in the product or here, is in `violations`."""
    gc.disable()
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_simulate(seed, loop))
    finally:
        _close(loop)
        gc.enable()


def _close(loop: VirtualLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()


async def _simulate(seed: int, loop: VirtualLoop) -> Outcome:
    chaos = Chaos(seed, loop)
    with ids_from(chaos.new_id):
        system = System(chaos, draw_setup(chaos.random))
        system.start()
        people = draw_people(system, chaos)
        acting = [loop.create_task(person.act()) for person in people]
        loop.call_later(FAULTS_UNTIL_S * chaos.random.random() + 5.0, _cease, chaos)
        _forecast(chaos, system, loop)
        found: list[str] = []
        try:
            await _until_rest(system, acting)
        except TimeoutError:
            found.append(f"not at rest after {HORIZON_S:g} virtual seconds: {system.what_is_late()}")
        ended_s = loop.time()
        found += [
            f"a request was never answered: {act.exception()!r}" for act in acting if act.done() and act.exception()
        ]
        found += violations(system, people)
        system.stop()
        return Outcome(
            seed=seed,
            violations=found,
            history=list(system.log.events),
            trace=chaos.trace,
            steps=chaos.reached | chaos.struck,
            ended_s=ended_s,
        )


def _forecast(chaos: Chaos, system: System, loop: VirtualLoop) -> None:
    """What befalls all at once in this run: a server that is away for a while, a bus that has lost everything."""
    storms: dict[str, Callable[[float], None]] = {
        "Postgres is away": system.database.go_away,
        "NATS is away": system.nats.go_away,
        "JetStream is wiped": lambda _: system.nats.wipe(),
    }

    def strike(name: str, seconds: float) -> None:
        chaos.note(f"{name} for {seconds:.1f} s")
        chaos.reach(name)
        storms[name](seconds)

    for name in storms:
        if chaos.level and chaos.random.random() < _STORMS:
            loop.call_later(chaos.between(1.0, FAULTS_UNTIL_S), strike, name, chaos.between(*_AWAY_S))


def _cease(chaos: Chaos) -> None:
    chaos.ceased = True
    chaos.note("faults cease")


async def _until_rest(system: System, acting: Sequence[asyncio.Task[None]]) -> None:
    still = head = 0
    async with asyncio.timeout(HORIZON_S):
        while still < _STILL_LOOKS:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = len(system.log.events)
            rests = all(act.done() for act in acting) and system.is_at_rest()
            still = still + 1 if rests and now == head else 0
            head = now
