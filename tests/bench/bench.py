"""What a benchmark is. One is a module `tests/bench/<letter>_<name>.py` with a docstring (its first line is shown) and

    async def run(bench: Bench) -> None:
        rounds = await bench.interleaved(ours=measure_ours, limit=measure_limit)
        bench.record("appends, 16 writers", rounds["ours"], "1/s", limit=rounds["limit"], limit_is="raw insert",
                     target=ratio_at_least(0.7))

Every figure is a list of rounds (its median is shown, its range beside it) or a single number. `limit` is what the
machine or a peer gives for the same thing in the same run; the ratio is the median of the rounds' own ratios, so that a
machine that is slow for a while is slow for both. Without a target a figure is only shown.

`bench.home` is a scratch folder on disk that Postgres may enter, gone at the end; `bench.postgres` a durable server for
the whole run (`servers.py` makes logs and buses on it). Controls are measured by the program before and after a module.
"""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from deploy.embedded.postgres import EmbeddedPostgres

ROUNDS = 5

Rounds = float | Sequence[float]


class Result(msgspec.Struct, kw_only=True):
    """One line of the report. `met` is None where there is no target."""

    name: str
    unit: str
    value: float
    least: float
    most: float
    rounds: int
    limit: float | None = None
    limit_is: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


class Target(msgspec.Struct, frozen=True):
    """What a figure, or its ratio to the limit, should be."""

    bound: float
    is_least: bool
    of_ratio: bool = False

    def __str__(self) -> str:
        return f"{'ratio ' if self.of_ratio else ''}{'≥' if self.is_least else '≤'} {self.bound:g}"

    def is_met(self, result: Result) -> bool:
        got = result.ratio if self.of_ratio else result.value
        return got is not None and (got >= self.bound if self.is_least else got <= self.bound)


def at_least(bound: float) -> Target:
    return Target(bound, is_least=True)


def at_most(bound: float) -> Target:
    return Target(bound, is_least=False)


def ratio_at_least(bound: float) -> Target:
    return Target(bound, is_least=True, of_ratio=True)


def ratio_at_most(bound: float) -> Target:
    return Target(bound, is_least=False, of_ratio=True)


class Figures:
    """Where a benchmark puts its figures."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def record(
        self,
        name: str,
        value: Rounds,
        unit: str,
        *,
        limit: Rounds | None = None,
        limit_is: str = "",
        target: Target | None = None,
        note: str = "",
    ) -> Result:
        """Keeps and prints a figure."""
        values = _rounds(value)
        result = Result(
            name=name,
            unit=unit,
            value=statistics.median(values),
            least=min(values),
            most=max(values),
            rounds=len(values),
            limit=None if limit is None else statistics.median(_rounds(limit)),
            limit_is=limit_is,
            ratio=None if limit is None else statistics.median(_ratios(values, _rounds(limit))),
            target="" if target is None else str(target),
            note=note,
        )
        result.met = None if target is None else target.is_met(result)
        self.results.append(result)
        print(line(result), flush=True)
        return result

    def say(self, text: str) -> None:
        """Prints what is being done: some preparations take a while."""
        print(f"  · {text}", flush=True)


class Bench(Figures):
    """What a benchmark gets: somewhere to work, and somewhere to put its figures."""

    def __init__(self, name: str, home: Path, postgres: EmbeddedPostgres, *, rounds: int = ROUNDS) -> None:
        super().__init__()
        self.name = name
        self.home = home
        self.postgres = postgres
        self.rounds = rounds

    async def interleaved(
        self, *, rounds: int | None = None, **measures: Callable[[], Awaitable[float]]
    ) -> dict[str, list[float]]:
        """Takes each measure in turn, round after round, and gives each one's figures."""
        figures: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(rounds or self.rounds):
            for name, measure in measures.items():
                figures[name].append(await measure())
        return figures


def _rounds(value: Rounds) -> list[float]:
    return [float(value)] if isinstance(value, (int, float)) else [float(one) for one in value]


def _ratios(values: list[float], limits: list[float]) -> list[float]:
    """Round by round, or of the medians where the rounds do not pair up."""
    if len(values) != len(limits):
        values, limits = [statistics.median(values)], [statistics.median(limits)]
    return [ours / limit for ours, limit in zip(values, limits, strict=True)]


def figure(number: float) -> str:
    """A number with as many digits as mean something."""
    if abs(number) >= 100:
        return f"{number:,.0f}".replace(",", " ")
    return f"{number:.3g}"


def line(result: Result) -> str:
    """A result as one line of text."""
    parts = [f"  {result.name}: {figure(result.value)} {result.unit}"]
    if result.rounds > 1:
        parts.append(f"({figure(result.least)} to {figure(result.most)} in {result.rounds} rounds)")
    if result.limit is not None and result.ratio is not None:
        parts.append(f"| {result.limit_is or 'limit'} {figure(result.limit)} | ratio {result.ratio:.2f}")
    if result.met is not None:
        parts.append(f"| target {result.target}: {'met' if result.met else 'MISSED'}")
    return " ".join(parts) + (f" | {result.note}" if result.note else "")


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed: 0.99 for the p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started
