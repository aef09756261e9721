"""What must hold at the end of every seed, against the vendor's own bill."""

from uuid import UUID

import msgspec

from services.provider_bridge.attempt_stream import attempt_stream
from services.provider_bridge.domain.attempt_states import Ended
from services.provider_bridge.provider_stream import provider_stream
from shared.contracts import catalogue
from shared.contracts.attempt import AttemptFailed, AttemptMachineReleased
from shared.contracts.provider import ProviderOrphanEnded
from tests.provider_faults.world import World

TOLERANCE = 0.005
_ROUNDING_S = 1.0
"""Seconds are whole: the last one begun counts."""
_OUR_FAULT = frozenset({"lost", "failed"})
_LACKS = frozenset({"no_capacity", "no_funds"})


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one seed. `billed` and `booked` are micro-dollars, of all its machines."""

    seed: int
    provider: str
    violations: list[str]
    billed: float
    booked: float
    runs: int
    orphans: int
    notes: list[str]


async def judge(world: World, rounds: int) -> Verdict:
    """Sweeps once, lets the ends be confirmed, and compares."""
    found: list[str] = []
    if not await world.all_over():
        found.append(f"not at rest after {rounds} looks")
    world.moment.pass_s(61.0)
    await world.sweep()
    world.moment.pass_s(5.0)
    stoppable = world.provider.capabilities.can_cancel  # else a run ends at its own limit, and says so up front
    left = [f"{line.ref} ({line.label})" for line in world.vendor.bill.open() if stoppable]
    if left:  # what ends by stopping first needs a second word
        await world.sweep()
        left = [f"{line.ref} ({line.label})" for line in world.vendor.bill.open()]
    found += [f"still costs money after the sweep: {one}" for one in left]
    await world.sweep()
    owned, orphans = await _owned(world, found)
    found += _unowned(world, owned)
    for attempt_id in world.plans:
        found += await _false_end(world, attempt_id)
    billed, booked = world.vendor.bill.micro_usd(), sum(money for _, money in owned.values())
    found += _money(world, owned, billed, booked)
    return Verdict(
        seed=world.seed,
        provider=world.provider.name,
        violations=found,
        billed=billed,
        booked=booked,
        runs=len(world.vendor.bill.lines),
        orphans=orphans,
        notes=world.notes,
    )


async def _owned(world: World, found: list[str]) -> tuple[dict[str, tuple[float, float]], int]:
    """Ref -> (seconds, micro-dollars) as the log has them, and how many of them were orphans."""
    owned: dict[str, tuple[float, float]] = {}

    def own(ref: str, seconds: int, price: int, what: str) -> None:
        ref = _plain(ref)
        world.note(f"{ref} is owned: {what}, {seconds} s")
        if ref in owned:
            found.append(f"{ref} is owned twice, the second time as {what}")
        owned[ref] = (float(seconds), seconds * price / 3600)

    for attempt_id in world.plans:
        for recorded in await world.store.read_stream(attempt_stream(attempt_id)):
            event = catalogue.decode(recorded)
            if isinstance(event, AttemptMachineReleased) and event.provider_ref is not None:
                own(
                    event.provider_ref,
                    event.seconds,
                    event.price_micro_usd_per_hour,
                    f"{event.basis} at {event.ended_at:%H:%M:%S}",
                )
    orphans = 0
    for recorded in await world.store.read_stream(provider_stream(f"{world.provider.name}/{world.seed}")):
        event = catalogue.decode(recorded)
        if isinstance(event, ProviderOrphanEnded):
            orphans += 1
            own(event.ref, event.seconds, event.price_micro_usd_per_hour, f"an orphan at {event.ended_at:%H:%M:%S}")
    return owned, orphans


def _plain(ref: str) -> str:
    """Without what an adapter or a vendor puts before the run's own name."""
    return ref.rpartition("/")[2]


def _unowned(world: World, owned: dict[str, tuple[float, float]]) -> list[str]:
    if world.provider.capabilities.metering != "machine":
        return []
    return [
        f"{line.ref} ({line.label}) ran {line.seconds(world.moment()):.0f} s that no event owns"
        for line in world.vendor.bill.lines
        if _plain(line.ref) not in owned and line.seconds(world.moment()) > 0
    ]


async def _false_end(world: World, attempt_id: UUID) -> list[str]:
    """An attempt that nobody cancelled, and whose machine nobody took, ends well: else we killed or lost it."""
    plan, state = world.plans[attempt_id], await world.state(attempt_id)
    if not isinstance(state, Ended) or plan.cancelled or plan.vanished or state.outcome not in _OUR_FAULT:
        return []
    told = [catalogue.decode(row) for row in await world.store.read_stream(attempt_stream(attempt_id))]
    kinds = {event.kind for event in told if isinstance(event, AttemptFailed)}
    if plan.lacked and kinds & _LACKS:
        return []
    why = [event.message for event in told if isinstance(event, AttemptFailed)]
    return [f"attempt {attempt_id} ended as {state.outcome} {sorted(kinds)}, and nothing was wrong with it: {why}"]


def _money(world: World, owned: dict[str, tuple[float, float]], billed: float, booked: float) -> list[str]:
    if world.provider.capabilities.metering != "machine":
        return []
    prices = [plan.offer.price_micro_usd_per_hour for plan in world.plans.values() if plan.offer is not None]
    slack = max(prices, default=0) * _ROUNDING_S / 3600 * max(len(world.vendor.bill.lines), len(owned))
    if abs(billed - booked) <= billed * TOLERANCE + slack:
        return []
    lines = [
        f"{line.ref}: vendor {line.seconds(world.moment()):.1f} s, log {owned.get(_plain(line.ref), (0.0, 0))[0]:.0f} s"
        for line in world.vendor.bill.lines
    ]
    return [f"the vendor bills {billed:.0f} micro-dollars, the log owns {booked:.0f} ({'; '.join(lines)})"]
