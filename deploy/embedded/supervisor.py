"""Keeps a set of programs running: starts them in order, brings the dead back, and stops them the other way round."""

import asyncio
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.embedded.child_log import ChildLog
from deploy.embedded.process import EmbeddedError

_POLL_S = 0.03
_FORCED_S = 10.0


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Something to keep running. Stages start in rising order and stop in falling order, each stage at once."""

    name: str
    stage: int
    spawn: Callable[[int], subprocess.Popen[bytes]]
    is_ready: Callable[[], bool] = _always
    stop_signal: signal.Signals = signal.SIGTERM
    force_signal: signal.Signals = signal.SIGKILL
    stop_timeout_s: float = 30.0
    ready_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a dead program comes back, and when it has died too often."""

    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    deaths_allowed: int = 5
    within_s: float = 60.0

    def delay_s(self, deaths: int) -> float:
        """Doubles with every recent death."""
        return min(self.first_delay_s * 2 ** (deaths - 1), self.longest_delay_s)


class GaveUp(EmbeddedError):  # noqa: N818  # a decision, named as one
    """A program died too often, or never got ready; the message holds its last lines."""


@dataclass(slots=True)
class _Running:
    program: Program
    child: subprocess.Popen[bytes]
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Supervisor:
    """Runs programs inside a task group of the caller's; must live in the main thread.

    `say` tells the operator; `on_spawn` hears of every new process. While `disk_is_full` says so, deaths do not count:
    the programs come back by themselves when there is space.
    """

    def __init__(
        self,
        logs: Path,
        *,
        say: Callable[[str], None],
        on_spawn: Callable[[str, int], None],
        disk_is_full: Callable[[], bool],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._logs_dir = logs
        self._say = say
        self._on_spawn = on_spawn
        self._disk_is_full = disk_is_full
        self._policy = policy or RestartPolicy()
        self._running: dict[str, _Running] = {}
        self._logs: dict[str, ChildLog] = {}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    async def start(self, group: asyncio.TaskGroup, programs: Iterable[Program]) -> None:
        """Starts these programs and returns when all are ready; a program that never gets ready is an error."""
        chosen = sorted(programs, key=lambda program: program.stage)
        for program in chosen:
            group.create_task(self._keep(program), name=f"keep {program.name}")
        for program in chosen:
            await self._until_ready(program)

    async def stop(self) -> None:
        """Stops everything, stage by stage from the last, and closes the logs."""
        self._stopping.set()
        for stage in sorted({running.program.stage for running in self._running.values()}, reverse=True):
            await asyncio.gather(*(self._end(item) for item in self._alive() if item.program.stage == stage))
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGCHLD)
        for log in self._logs.values():
            loop.remove_reader(log.reading_end)
            log.close()

    def hurry(self) -> None:
        """Makes a stop that is under way use force."""
        self._hurry.set()

    async def _keep(self, program: Program) -> None:
        deaths: deque[float] = deque()
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            how = await self._run_once(program)
            if self._stopping.is_set():
                return
            now = loop.time()
            deaths.append(now)
            while now - deaths[0] > self._policy.within_s:
                deaths.popleft()
            if self._disk_is_full():
                self._say(f"{program.name} {how}: the disk is full, so it is started again until there is space")
                deaths.clear()
                delay_s = self._policy.longest_delay_s
            elif len(deaths) >= self._policy.deaths_allowed:
                raise GaveUp(self._obituary(program.name, f"{how}, too often to go on."))
            else:
                self._say(f"{program.name} {how}; starting it again")
                delay_s = self._policy.delay_s(len(deaths))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self, program: Program) -> str:
        """Starts the program, waits for its end, and says how it ended."""
        log = self._log_of(program.name)
        try:
            child = program.spawn(log.writing_end)
        except (EmbeddedError, OSError) as error:
            log.write_line(f"could not start: {error}")
            return f"could not start ({error})"
        running = self._running[program.name] = _Running(program, child)
        self._on_spawn(program.name, child.pid)
        self._reap()  # it may have ended before anyone could listen
        return _describe(await asyncio.shield(running.ended))

    async def _until_ready(self, program: Program) -> None:
        try:
            async with asyncio.timeout(program.ready_timeout_s):
                while program.name not in self._running or not await asyncio.to_thread(program.is_ready):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)  # another process's readiness sends no event
        except TimeoutError:
            how = f"was not ready within {program.ready_timeout_s:.0f} s"
            raise GaveUp(self._obituary(program.name, f"{how}.")) from None

    def _obituary(self, name: str, how: str) -> str:
        log = self._log_of(name)
        log.pump()
        return f"{name} {how} The end of {log.path}:\n{log.tail}"

    def _log_of(self, name: str) -> ChildLog:
        if name not in self._logs:
            log = self._logs[name] = ChildLog(self._logs_dir / f"{name}.log")
            asyncio.get_running_loop().add_reader(log.reading_end, log.pump)
        return self._logs[name]

    def _alive(self) -> list[_Running]:
        return [running for running in self._running.values() if not running.ended.done()]

    def _reap(self) -> None:
        for running in self._alive():
            code = running.child.poll()
            if code is not None:
                running.ended.set_result(code)

    async def _end(self, running: _Running) -> None:
        program = running.program
        running.child.send_signal(program.stop_signal)
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([running.ended, hurry], timeout=program.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if running.ended.done():
            return
        self._say(f"{program.name} does not stop; using {program.force_signal.name}")
        running.child.send_signal(program.force_signal)
        done, _ = await asyncio.wait([running.ended], timeout=_FORCED_S)
        if not done:
            self._say(f"{program.name} (process {running.child.pid}) is still there and is left behind")


def _describe(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
