"""One comparison: two sides in turns, then one judge for what both have learnt, then three figures."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.bench import Figures, ratio_at_least, ratio_at_most
from tests.bench.trainer.sides import Measured, Place

SAME_LOSS = 1.05
"""A median loss within 5 % above the peer's is the same: seeds alone move it by more."""
_MIB = 2**20

Side = Callable[[Place, int, Path], tuple[Measured, Path]]
"""Trains with a seed in an empty folder; gives the clock and the adapter's file or folder."""


@dataclass(frozen=True)
class Comparison:
    """What is trained, by whom, and how it is judged."""

    name: str
    title: str
    peer_is: str
    target: float
    ours: Side
    peer: Side
    judge: tuple[str, ...]
    """The child module that prints a JSON list of losses, and its first arguments."""
    loss_is: str
    note: str = ""


@dataclass
class _Rounds:
    """All that was measured of one side."""

    measured: list[Measured] = field(default_factory=list[Measured])
    adapters: list[Path] = field(default_factory=list[Path])


def compare(comparison: Comparison, place: Place, rounds: int, figures: Figures) -> None:
    """Run both sides `rounds` times, alternating who begins, and record speed, loss and memory."""
    sides = {"ours": (comparison.ours, _Rounds()), "peer": (comparison.peer, _Rounds())}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            side, taken = sides[name]
            folder = place.home / "runs" / f"{comparison.name}-{name}-{number}"
            folder.mkdir(parents=True)
            measured, adapter = side(place, number + 1, folder)
            taken.measured.append(measured)
            taken.adapters.append(adapter)
            figures.say(f"{comparison.name}, {name}, round {number + 1}: {place.speed(measured):.2f} steps/s")
    ours, peer = sides["ours"][1], sides["peer"][1]
    _record(comparison, place, figures, ours, peer)


def _record(comparison: Comparison, place: Place, figures: Figures, ours: _Rounds, peer: _Rounds) -> None:
    unit = "steps/CPU-s" if place.device == "cpu" else "steps/s"
    figures.record(
        f"{comparison.title}, speed",
        [place.speed(each) for each in ours.measured],
        unit,
        limit=[place.speed(each) for each in peer.measured],
        limit_is=comparison.peer_is,
        target=ratio_at_least(comparison.target),
        note=comparison.note,
    )
    judged = [str(adapter) for adapter in [*ours.adapters, *peer.adapters]]
    module, *arguments = comparison.judge
    base, *losses = json.loads(place.run(module, *arguments, "-", *judged))
    ours_losses, peer_losses = losses[: len(ours.adapters)], losses[len(ours.adapters) :]
    figures.record(
        f"{comparison.title}, {comparison.loss_is}",
        statistics.median(ours_losses),
        "",
        limit=statistics.median(peer_losses),
        limit_is=comparison.peer_is,
        target=ratio_at_most(SAME_LOSS),
        note=f"{base:.3g} before training; {_spread(ours_losses)} against {_spread(peer_losses)}",
    )
    figures.record(
        f"{comparison.title}, peak memory",
        [place.memory_bytes(each) / _MIB for each in ours.measured],
        "MiB",
        limit=[place.memory_bytes(each) / _MIB for each in peer.measured],
        limit_is=comparison.peer_is,
        target=ratio_at_most(1.0),
        note=f"of it libraries {_libraries(ours)} and {_libraries(peer)} MiB" if place.device == "cpu" else "",
    )


def _spread(losses: list[float]) -> str:
    return f"{min(losses):.3g} to {max(losses):.3g}"


def _libraries(side: _Rounds) -> str:
    return f"{statistics.median(each.imports_bytes for each in side.measured) / _MIB:.0f}"
