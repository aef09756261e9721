"""What goes wrong, drawn from the seed: at each step of the code the dice say whether a fault strikes there."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from random import Random
from uuid import UUID

CRASH = "crash"
PAUSE = "pause"

_CHANCE = 0.05
"""Of a fault at a place's first passing in a run; the n-th passing has 1/n of it: rare places are hit as often."""
_LEVELS = (0.0, 0.3, 0.6, 1.0, 1.0, 2.0)
_THEMES = ("", "", CRASH, PAUSE, PAUSE, "lost", "delayed", "unavailable", "cut after it ran")
_LEANING = 0.7
"""How often a run with a theme has its way, where the theme is among the faults."""
_FOCUSES = (
    "",
    "provider:",
    "sql:bridge",
    "append:attempt",
    "append:job.d",
    "deliver:",
    "answer:",
    "sql:scheduler",
    "http:",
)
_FOCUSED = 5.0
"""How much likelier a run's faults are at the places it looks at."""
_DELAYED = 0.08
_YIELDED = 0.35
_LONGEST_DELAY_S = 0.05


class Chaos:
    """The run's only source of chance, ids included, and the record of what it did."""

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.random = Random(seed)  # noqa: S311 - chance, no secret
        self.level = self.random.choice(_LEVELS)
        self.theme = self.random.choice(_THEMES)
        self.focus = self.random.choice(_FOCUSES)
        self.ceased = False
        self.is_instant = False
        self.reached: set[str] = set()
        self.struck: set[str] = set()
        self.trace: list[str] = []
        self._passed: defaultdict[str, int] = defaultdict(int)
        self._loop = loop
        self._ids = Random(self.random.getrandbits(64))  # noqa: S311 - chance, no secret
        self._born = 0

    def reach(self, place: str) -> None:
        """A place was passed at which nothing can go wrong."""
        self.reached.add(place)

    def fault(self, place: str, kinds: Sequence[str]) -> str | None:
        """The fault that strikes here now, if any."""
        passed = self._passed[place] = self._passed[place] + 1
        if passed == 1:
            self.reached.add(place)
        if self.ceased:
            return None
        weight = _FOCUSED if self.focus and place.startswith(self.focus) else 1.0
        if self.random.random() * passed >= _CHANCE * self.level * weight:
            return None
        leans = self.theme in kinds and self.random.random() < _LEANING
        kind = self.theme if leans else self.random.choice(kinds)
        self.note(f"{kind} at {place}")
        self.struck.add(f"{kind} at {place}")
        return kind

    def chance(self, probability: float) -> bool:
        """True so often; never after the faults have ceased."""
        return not self.ceased and self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Some number of seconds."""
        return low + (high - low) * self.random.random()

    def note(self, line: str) -> None:
        """Adds a line to the trace that is shown when the run fails."""
        self.trace.append(f"{self._loop.time():10.3f} {line}")

    async def latency(self) -> None:
        """What a round trip may take: mostly nothing, sometimes a turn of the loop, sometimes some milliseconds."""
        drawn = 1.0 if self.is_instant else self.random.random()
        if drawn < _DELAYED:
            await asyncio.sleep(drawn / _DELAYED * _LONGEST_DELAY_S)
        elif drawn < _YIELDED:
            await asyncio.sleep(0)

    def new_id(self) -> UUID:
        """A version 7 UUID made of virtual time and the seed."""
        self._born += 1
        milliseconds = int(self._loop.time() * 1000) + 1_795_305_600_000
        tail = (self._born & 0xFFF) << 64 | 0b10 << 62 | self._ids.getrandbits(62)
        return UUID(int=milliseconds << 80 | 0x7 << 76 | tail)
