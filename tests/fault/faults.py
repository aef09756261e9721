"""What can be done at a step, and the director who does it when the step is reached."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, assert_never

from tests.fault.links import Link, Verdict
from tests.fault.steps import aliases

Kind = Literal["kill", "kill_after", "pause", "cut", "delay", "twice", "server"]
"""SIGKILL before the message passes; SIGKILL just after it; SIGSTOP and SIGCONT; the connection breaks and is refused
for a while; the message is late; it comes twice; the server behind the link (Postgres, NATS, a service) is killed."""

MAX_TRACE = 20_000


@dataclass(slots=True)
class Armed:
    """One fault that waits for the n-th time its step is reached."""

    step: str
    kind: Kind
    nth: int
    for_s: float
    """How long the pause, the refusal, the delay or the restart takes."""
    seen: int = 0
    is_armed: bool = True
    process: str = ""
    """Who was hit; empty until then."""

    def __str__(self) -> str:
        where = f", hit {self.process}" if self.process else ", never reached"
        return f"{self.kind} for {self.for_s:.2f} s at {self.step} (time {self.nth}){where}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A step that was reached, or something that was done."""

    at_s: float
    process: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:8.3f}  {self.process:<18} {self.text}"


class Stage(Protocol):
    """What the director can do to processes and servers; every method may take its time."""

    async def kill(self, process: str, away_s: float) -> None:
        """SIGKILL; the process is started again after `away_s`."""
        ...

    async def pause(self, process: str, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after `for_s`."""
        ...

    async def kill_server(self, server: str, away_s: float) -> None:
        """SIGKILL of what is behind a link; started again after `away_s`."""
        ...


@dataclass(slots=True)
class Scene:
    """One seed's faults and what was seen meanwhile."""

    armed: list[Armed] = field(default_factory=list[Armed])
    trace: list[Seen] = field(default_factory=list[Seen])
    reached: Counter[str] = field(default_factory=Counter[str])
    began: float = field(default_factory=time.monotonic)

    def note(self, process: str, text: str) -> None:
        """Adds a line to the trace."""
        if len(self.trace) < MAX_TRACE:
            self.trace.append(Seen(time.monotonic() - self.began, process, text))


class Director:
    """The witness of every link: counts steps, and strikes where a fault is armed."""

    def __init__(self, stage: Stage, tasks: asyncio.TaskGroup) -> None:
        self._stage = stage
        self._tasks = tasks
        self._acting: set[asyncio.Task[None]] = set()
        self.scene = Scene()

    def begin(self, armed: list[Armed]) -> Scene:
        """A new scene, in which these faults wait for their steps."""
        self.scene = Scene(armed=armed)
        return self.scene

    def disarm(self) -> None:
        """What has not struck yet never will."""
        for fault in self.scene.armed:
            fault.is_armed = False

    async def calm(self) -> None:
        """Returns when nothing that was done is still going on."""
        while self._acting:
            await asyncio.wait(self._acting)

    async def witness(self, step: str, link: Link) -> Verdict:
        """What becomes of the frame at this step of this link."""
        verdict = Verdict.PASS
        for name in (step, *aliases(step)):
            self.scene.reached[name] += 1
            self.scene.note(link.process, name)
            for fault in self.scene.armed:
                if self._strikes(fault, name):
                    fault.process = link.process
                    self.scene.note(link.process, f"*** {fault}")
                    verdict = await self._strike(fault, link)
        return verdict

    @staticmethod
    def _strikes(fault: Armed, step: str) -> bool:
        if fault.step != step or fault.process or not fault.is_armed:
            return False
        fault.seen += 1
        return fault.seen == fault.nth

    async def _strike(self, fault: Armed, link: Link) -> Verdict:
        verdict = Verdict.PASS
        match fault.kind:
            case "kill":
                verdict = Verdict.DROP
                await self._do(self._stage.kill(link.process, fault.for_s))
            case "kill_after":
                await self._do(self._kill_soon(link.process, fault.for_s))
            case "pause":
                await asyncio.shield(await self._do(self._stage.pause(link.process, fault.for_s)))
            case "cut":
                verdict = Verdict.DROP
                link.cut(fault.for_s)
            case "delay":
                await asyncio.sleep(fault.for_s)
            case "twice":
                verdict = Verdict.TWICE
            case "server":
                verdict = Verdict.DROP
                await self._do(self._stage.kill_server(link.server, fault.for_s))
            case _:
                assert_never(fault.kind)
        return verdict

    async def _kill_soon(self, process: str, away_s: float) -> None:
        await asyncio.sleep(away_s / 50)
        await self._stage.kill(process, away_s)

    async def _do(self, action: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs apart from the link, whose connection may end with the process; begun when this returns."""
        acting = self._tasks.create_task(action)
        self._acting.add(acting)
        acting.add_done_callback(self._acting.discard)
        await asyncio.sleep(0)
        return acting
