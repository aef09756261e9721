"""What goes wrong at every vendor, by name, and what it charges: the ground that all simulators share.

A simulator inherits from `Simulator` and answers in `route`, or mixes `Faults` into a server of its own and hands each
call to `apply`. Faults come from `next_` (one call each), `next_creates`, `always`, `always_creates` or `choose`.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from shared.clock import Clock, utc_now
from tests.simulators.loopback import Answer, Call, Loopback

Fault = Literal[
    "429",  # without Retry-After; nothing was done, as for all above "500 after"
    "429 with Retry-After",
    "401",
    "402",
    "403",
    "500 before",
    "html",  # a page of a proxy, with status 200
    "html 502",
    "hang",  # answered, with 504, only when released
    "reset before",
    "500 after",  # it was done, as for all below
    "html after",  # with status 502
    "hang after",  # answered truly, once released
    "reset",  # the connection is reset
    "lost reply",  # the connection is closed in good order, without an answer
]
"""The call was done, or not, and what its sender sees of it."""

DONE: frozenset[Fault] = frozenset({"500 after", "html after", "hang after", "reset", "lost reply"})
"""After these the vendor has done what it was asked."""

_PAGE = b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body><h1>Bad gateway</h1></body></html>"
_HTML = {"Content-Type": "text/html; charset=utf-8"}


class Moment:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        """So many seconds go by."""
        self.now += timedelta(seconds=seconds)


class Faults:
    """Makes calls fail by plan. Names and clocks may be changed at any moment, from any thread."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self.clock = clock
        """The true time, by which the bill runs."""
        self.skew = timedelta(0)
        """The vendor's clock minus the true one: in its Date header and every moment that it shows."""
        self.next_: deque[Fault] = deque()
        self.next_creates: deque[Fault] = deque()
        self.always: Fault | None = None
        self.always_creates: Fault | None = None
        self.choose: Callable[[Call], Fault | None] | None = None
        """Asked about every call that no other plan names."""
        self.retry_after_s = 1
        self.happened: list[tuple[Call, Fault]] = []
        self._release = threading.Event()
        self._planning = threading.Lock()

    def is_create(self, call: Call) -> bool:
        """Whether the call starts something that costs money; a simulator says it better."""
        return call.method == "POST"

    def refusal(self, status: int) -> Answer:
        """The vendor's own body for a status; this one is problem+json."""
        content = {"title": "simulated", "status": status, "detail": f"simulated {status}"}
        return Answer(status, content, headers={"Content-Type": "application/problem+json"})

    def shown_now(self) -> datetime:
        """The present moment by the vendor's clock."""
        return self.shown(self.clock())

    def shown(self, moment: datetime) -> datetime:
        """A true moment by the vendor's clock."""
        return moment + self.skew

    def release(self) -> None:
        """Lets every answer go that is held now."""
        with self._planning:
            self._release.set()
            self._release = threading.Event()

    def apply(self, call: Call, route: Callable[[Call], Answer]) -> Answer:
        """The answer of `route`, or what the planned fault makes of it."""
        fault, release = self._planned(call)
        if fault is None:
            return route(call)
        return self._after(fault, route(call), release) if fault in DONE else self._instead(fault, release)

    def _instead(self, fault: Fault, release: threading.Event) -> Answer:
        match fault:
            case "429 with Retry-After":
                return _with(self.refusal(429), {"Retry-After": str(self.retry_after_s)})
            case "hang":
                return replace(self.refusal(504), hold=release)
            case "reset before":
                return Answer(drop="reset")
            case "html" | "html 502":
                return Answer(200 if fault == "html" else 502, body=_PAGE, headers=_HTML)
            case _:
                return self.refusal(int(fault[:3]))

    def _after(self, fault: Fault, answer: Answer, release: threading.Event) -> Answer:
        match fault:
            case "hang after":
                return replace(answer, hold=release)
            case "html after":
                return Answer(502, body=_PAGE, headers=_HTML)
            case "500 after":
                return self.refusal(500)
            case _:
                return Answer(drop="reset" if fault == "reset" else "close")

    def _planned(self, call: Call) -> tuple[Fault | None, threading.Event]:
        with self._planning:
            creates = self.is_create(call)
            if creates and self.next_creates:
                fault: Fault | None = self.next_creates.popleft()
            elif self.next_:
                fault = self.next_.popleft()
            elif creates and self.always_creates is not None:
                fault = self.always_creates
            elif self.always is not None:
                fault = self.always
            else:
                fault = self.choose(call) if self.choose is not None else None
            if fault is not None:
                self.happened.append((call, fault))
            return fault, self._release


def _with(answer: Answer, headers: dict[str, str]) -> Answer:
    return replace(answer, headers={**answer.headers, **headers})


class Simulator(Faults, Loopback):
    """A vendor on loopback. Subclasses answer in `route`."""

    def __init__(self, clock: Clock = utc_now) -> None:
        Faults.__init__(self, clock)
        Loopback.__init__(self, lambda call: self.apply(call, self.route), self.shown_now)

    def route(self, call: Call) -> Answer:
        """What the vendor answers when all is well."""
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        self.release()
        super().__exit__()


@dataclass
class BillLine:
    """What one run or machine costs, by the vendor's own count."""

    ref: str
    label: str
    """What we called it: the tag's label, as far as the vendor was told it."""
    started: datetime
    price_micro_usd_per_hour: int
    """Now, or at its end."""
    ended: datetime | None = None
    earlier_micro_usd: float = field(default=0.0, repr=False)
    """At earlier prices."""
    priced_since: datetime | None = field(default=None, repr=False)

    def seconds(self, now: datetime) -> float:
        """How long it has cost money."""
        return ((self.ended or now) - self.started).total_seconds()

    def micro_usd(self, now: datetime) -> float:
        """What it has cost."""
        span_s = ((self.ended or now) - (self.priced_since or self.started)).total_seconds()
        return self.earlier_micro_usd + span_s * self.price_micro_usd_per_hour / 3600


class Bill:
    """Every run that ever cost money, by the true clock. A run that is ended twice ended the first time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.lines: list[BillLine] = []

    def start(self, ref: str, label: str, price_micro_usd_per_hour: int) -> BillLine:
        """From now on it costs."""
        line = BillLine(ref, label, self._clock(), price_micro_usd_per_hour)
        self.lines.append(line)
        return line

    def reprice(self, ref: str, price_micro_usd_per_hour: int) -> None:
        """From now on it costs another price, 0 included; its seconds go on."""
        line, now = self.line(ref), self._clock()
        if line.ended is None:
            line.earlier_micro_usd, line.priced_since = line.micro_usd(now), now
            line.price_micro_usd_per_hour = price_micro_usd_per_hour

    def end(self, ref: str) -> None:
        """From now on it costs nothing."""
        line = self.line(ref)
        line.ended = line.ended or self._clock()

    def line(self, ref: str) -> BillLine:
        """The newest line of this run; KeyError for one that never cost anything."""
        for line in reversed(self.lines):
            if line.ref == ref:
                return line
        raise KeyError(ref)

    def of(self, label: str) -> list[BillLine]:
        """Every line under this label; two of them at one time are one machine too many."""
        return [line for line in self.lines if line.label == label]

    def open(self) -> list[BillLine]:
        """What costs money now."""
        return [line for line in self.lines if line.ended is None]

    def seconds(self) -> float:
        """Of all lines until now."""
        now = self._clock()
        return sum(line.seconds(now) for line in self.lines)

    def micro_usd(self) -> float:
        """Of all lines until now."""
        now = self._clock()
        return sum(line.micro_usd(now) for line in self.lines)
