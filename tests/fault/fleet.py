"""The processes of a system under fault: started, killed, stopped, continued and started again."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.children import REPOSITORY
from deploy.embedded.process import spawn

_LOOK_S = 0.1
_END_S = 20.0
_ERROR = re.compile(r"\[(error|critical)\s*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one process is started."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]


class Fleet:
    """Keeps every planned process running; a death that nobody caused is noted and mended.

    Must live in the main thread: children are tied to the thread that forks them.
    """

    def __init__(self, logs: Path, note: Callable[[str, str], None]) -> None:
        self._logs = logs
        self._note = note
        self._plans: dict[str, Plan] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._away: set[str] = set()
        self._paused: set[str] = set()
        self._own_deaths: list[str] = []
        self._read: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Every process of the fleet."""
        return list(self._plans)

    def start(self, plan: Plan) -> None:
        """Starts one process and keeps it."""
        self._plans[plan.name] = plan
        self._spawn(plan.name)

    def pid(self, name: str) -> int:
        """The process as it is now."""
        return self._running[name].pid

    async def watch(self) -> None:
        """Starts again what ended by itself, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for name, child in list(self._running.items()):
                if name not in self._away and (code := child.poll()) is not None:
                    self._own_deaths.append(f"{name} ended by itself with code {code}; see {self.log_of(name)}")
                    self._note(name, f"!!! ended by itself with code {code}")
                    self._spawn(name)

    async def kill(self, name: str, away_s: float) -> None:
        """SIGKILL at once; started again after `away_s`. One that is away stays away."""
        if name in self._away:
            return
        self._away.add(name)
        child = self._running[name]
        child.send_signal(signal.SIGKILL)
        self._note(name, "SIGKILL")
        await asyncio.to_thread(child.wait)
        await asyncio.sleep(away_s)
        self._spawn(name)
        self._away.discard(name)

    async def pause(self, name: str, for_s: float) -> None:
        """SIGSTOP now, SIGCONT after `for_s`; other starts and ends of the process are left alone."""
        child = self._running[name]
        if name in self._away or name in self._paused:
            return
        self._paused.add(name)
        child.send_signal(signal.SIGSTOP)
        self._note(name, "SIGSTOP")
        try:
            await asyncio.sleep(for_s)
        finally:
            child.send_signal(signal.SIGCONT)
            self._paused.discard(name)
            self._note(name, "SIGCONT")

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to what does not end."""
        self._away.update(self._plans)
        for child in self._running.values():
            child.send_signal(signal.SIGTERM)
        for name, child in self._running.items():
            try:
                await asyncio.to_thread(child.wait, _END_S)
            except subprocess.TimeoutExpired:
                self._own_deaths.append(f"{name} did not end within {_END_S:g} s of SIGTERM")
                child.kill()
                child.wait()

    def complaints(self) -> list[str]:
        """What went wrong since the last call that no fault explains: deaths of their own, and errors in the logs."""
        found, self._own_deaths = self._own_deaths, []
        for name in self._plans:
            with self.log_of(name).open("rb") as log:
                log.seek(self._read.get(name, 0))
                said = log.read()
                self._read[name] = log.tell()
            lines = said.decode("utf-8", errors="replace").splitlines()
            found += [f"{name} says: {line.strip()}" for line in lines if _ERROR.search(line)]
        return found

    def log_of(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self._logs / f"{name}.log"

    def _spawn(self, name: str) -> None:
        plan = self._plans[name]
        output = os.open(self.log_of(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._running[name] = spawn(
                [sys.executable, *plan.arguments],
                env=plan.environment,
                output=output,
                death_signal=signal.SIGKILL,
                cwd=REPOSITORY,
            )
        finally:
            os.close(output)
        self._note(name, f"started as process {self._running[name].pid}")
