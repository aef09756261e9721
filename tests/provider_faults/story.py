"""What happens in one seed: attempts are asked for, the vendor misbehaves, then it calms down and all must end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
import stamina

from services.provider_bridge.domain.attempt_states import Absent, Ended, Forestalled
from services.provider_bridge.domain.provider import OPEN_FOR
from services.provider_bridge.outbound.ports import StartRefused
from shared.contracts.offers import Offer
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.case import Lack
from tests.provider_faults.checks import Verdict, judge
from tests.provider_faults.vendors import VENDORS
from tests.provider_faults.world import FAULTS, QUICK, Plan, World
from tests.simulators.faults import BillLine, Moment

CALM_ROUNDS = 60
_PATIENCE = 4
_HANGS = 0.15
"""How often a seed may make the vendor hang: each costs real time."""


async def play(seed: int, pool: asyncpg.Pool) -> Verdict:
    """One seed from its first attempt to the verdict. Reads are repeated as often as ever, but at once."""
    with stamina.set_testing(True, attempts=3, cap=True):
        return await _played(seed, pool)


async def _played(seed: int, pool: asyncpg.Pool) -> Verdict:
    names = sorted(VENDORS)
    moment = Moment(datetime(2026, 11, 29, tzinfo=UTC) + timedelta(hours=seed))
    vendor = VENDORS[names[seed % len(names)]](moment)
    with vendor.simulator:
        world = World(seed, pool, vendor, moment)
        try:
            await _storm(world, await _free_offers(world))
            rounds = await _calm(world)
            return await judge(world, rounds)
        finally:
            vendor.simulator.release()
            await world.close()


async def _free_offers(world: World) -> list[Offer]:
    """What can be had before the storm; a machine that is very busy may answer itself too late."""
    for _ in range(_PATIENCE):
        with suppress(Unavailable):
            offers = sorted(await world.provider.quote(), key=lambda offer: (offer.hardware, offer.region or ""))
            return [offer for offer in offers if offer.availability != "none"]
    raise AssertionError("the vendor did not answer before the storm")


async def _storm(world: World, offers: list[Offer]) -> None:
    attempts = world.random.randint(1, 2)
    for _ in range(attempts):
        await world.request(world.random.choice(offers) if offers else None)
    hangs = world.random.random() < _HANGS
    for _ in range(world.random.randint(6, 14)):
        world.moment.pass_s(world.random.choice((0.5, 2.0, 15.0, 90.0)))
        deed = world.random.choice(_DEEDS)
        world.note(deed.__name__)
        await deed(world, hangs)
        for _ in range(3):  # the reconciler looks every second: an end that takes two words is not left half said
            await world.drive()
            world.moment.pass_s(1.5)
        if world.random.random() < 0.3:
            await _swept(world)


async def _swept(world: World) -> None:
    try:
        await world.sweep()
    except Unavailable as away:
        world.note(f"sweep put off: {away}")


# ---- what may happen -------------------------------------------------------------------------------------------------


async def _plan_faults(world: World, hangs: bool) -> None:  # noqa: FBT001 - every deed has this shape
    simulator = world.vendor.simulator
    for _ in range(world.random.randint(1, 4)):
        simulator.next_.append(world.random.choice(FAULTS if hangs else QUICK))
    if world.random.random() < 0.5:
        simulator.next_creates.append(world.random.choice(QUICK))


async def _storm_of_one_kind(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    simulator = world.vendor.simulator
    simulator.always = None if simulator.always else world.random.choice(QUICK[:5])


async def _skew_clocks(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    world.vendor.simulator.skew = timedelta(seconds=world.random.choice((-300, -40, 0, 40, 300)))


async def _lack(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    wanted: Lack | None = world.random.choice(("capacity", "funds", None))
    with suppress(pytest.skip.Exception):  # this vendor cannot lack it
        world.vendor.case.lack(wanted)
        for plan in world.plans.values():
            plan.lacked = True


async def _restart(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    world.reborn()


async def _cancel(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    if world.random.random() < 0.4:
        await world.cancel(world.random.choice(list(world.plans)))


async def _vanish(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    attempt_id = world.random.choice(list(world.plans))
    is_heard = await world.is_heard()  # what ends while the vendor does not answer is counted until it does
    is_over = isinstance(await world.state(attempt_id), Ended)
    if world.random.random() < 0.3 and world.alive(attempt_id) and is_heard and not is_over:
        world.vendor.case.vanish(attempt_id)
        world.plans[attempt_id].vanished = True
        await _see_the_end(world)


async def _hook(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    attempt_id = world.random.choice(list(world.plans))
    for word in world.random.sample(("starting", "processing", "succeeded"), 3):
        for _ in range(world.random.randint(1, 2)):
            await world.hook(attempt_id, word)


async def _start_late(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    """A start of a bridge that was paused arrives now: of an attempt that has ended, or that nobody knows.

    One beside a living run is tests/integration/provider_bridge/test_orphans.py: here it would be taken for the newest.
    """
    if not world.provider.capabilities.can_cancel or not await world.is_heard():
        return
    over = [attempt_id for attempt_id in world.plans if isinstance(await world.state(attempt_id), Ended)]
    offer = next(iter(world.plans.values())).offer
    with suppress(StartRefused, Unavailable):
        await world.start_late(world.random.choice([*over, new_id()]), offer)


async def _train(world: World, hangs: bool) -> None:  # noqa: ARG001, FBT001 - every deed has this shape
    for attempt_id, plan in world.plans.items():
        await advance(world, attempt_id, plan, to_the_end=world.random.random() < 0.4)


_DEEDS: tuple[Callable[[World, bool], Awaitable[None]], ...] = (
    _plan_faults,
    _plan_faults,
    _storm_of_one_kind,
    _skew_clocks,
    _lack,
    _restart,
    _cancel,
    _vanish,
    _hook,
    _start_late,
    _train,
    _train,
    _train,
)


async def advance(world: World, attempt_id: UUID, plan: Plan, *, to_the_end: bool) -> None:
    """The trainer of the newest run goes on: hello, a checkpoint, and perhaps the end."""
    if isinstance(await world.state(attempt_id), Ended):
        return
    starts = world.vendor.case.starts(attempt_id)
    if starts > plan.begun:
        plan.begun = starts
        lines = world.lines(attempt_id)
        is_over = len(lines) == starts and lines[-1].ended is not None
        if not is_over:
            world.vendor.case.begin(attempt_id)
    alive = world.alive(attempt_id)
    if not alive or alive[-1].ref in plan.done:
        return
    newest: BillLine = alive[-1]
    if not await world.is_worth_something(newest):
        return  # it is told that it is superseded, and ends in its own time: here the sweep must end it
    await world.report(attempt_id, "hello", {"device": "cuda"})
    await world.report(attempt_id, "checkpoint", {"step": 50, "files": []})
    if to_the_end:
        await world.report(attempt_id, "done", {"steps": 100})
        plan.done.add(newest.ref)
        if not world.provider.capabilities.knows_outcome and world.random.random() < 0.5:
            return  # a machine whose trainer has ended may live on: then we end it
        if not await world.is_heard():
            return
        world.vendor.case.finish(attempt_id)
        await _see_the_end(world)


async def _see_the_end(world: World) -> None:
    """A run has ended by itself: the bridge looks every second, and the vendor answers that time."""
    simulator = world.vendor.simulator
    held = (simulator.always, list(simulator.next_), list(simulator.next_creates))
    simulator.always = None
    simulator.next_.clear()
    simulator.next_creates.clear()
    await world.drive()
    simulator.always = held[0]
    simulator.next_.extend(held[1])
    simulator.next_creates.extend(held[2])


# ---- the calm after it -----------------------------------------------------------------------------------------------


async def _calm(world: World) -> int:
    """The vendor is well again. Everybody's trainer ends; how many looks it took until nothing was owed."""
    simulator = world.vendor.simulator
    simulator.always = simulator.always_creates = None
    simulator.next_.clear()
    simulator.next_creates.clear()
    simulator.skew = timedelta(0)
    simulator.release()
    with suppress(pytest.skip.Exception):
        world.vendor.case.lack(None)
    world.moment.pass_s(OPEN_FOR.total_seconds() + 1)
    for number in range(CALM_ROUNDS):
        for _ in range(4):  # the reconciler looks every second: what was ended is soon seen to be gone
            await world.drive()
            world.moment.pass_s(1.5)
        for attempt_id, plan in world.plans.items():
            state = await world.state(attempt_id)
            if isinstance(state, Absent | Forestalled | Ended):
                continue
            await advance(world, attempt_id, plan, to_the_end=True)
        if await world.all_over():
            return number
        world.moment.pass_s(4.0)
        await asyncio.sleep(0)
    return CALM_ROUNDS
