"""The agent: registers, does what its stream says, tells what becomes of its run. The run outlives it.

Three loops over one run: the stream, the heartbeat, and the watch on the run's files. What the agent must not forget is
on disk before it acts (`state.py`, `shared/runs`), so it may be killed at any moment and goes on where it was.
"""

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from services.cli.failures import CliError
from services.cli.worker.server import Order, Server, ServerAway, ServerRefused, TokenRefused
from services.cli.worker.state import AgentState, Current
from shared.contracts.run import ExitCode
from shared.contracts.worker import HEARTBEAT_S, WorkerCancel, WorkerJob
from shared.problems import Unavailable
from shared.runs.hardware import gpus
from shared.runs.machine import CannotStart, Machine, Run

ABANDON_GRACE_S = 10.0
"""A run that is not ours any more saves nothing that anybody would take."""
_LOOK_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_NOT_NOW = (ServerAway, TokenRefused, CliError, Unavailable)


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker says of itself."""

    name: str
    labels: dict[str, str]
    provider: str | None = None
    heartbeat_s: float = HEARTBEAT_S


class Agent:
    """One worker. `say` shows a person what happens."""

    def __init__(
        self, server: Server, machine: Machine, state: AgentState, options: AgentOptions, say: Callable[[str], None]
    ) -> None:
        self._server = server
        self._machine = machine
        self._state = state
        self._options = options
        self._say = say
        self._job: WorkerJob | None = None
        """What the current run is started with; gone with the process, and then told again."""
        self._next: WorkerJob | None = None
        self._worker_id: str | None = None
        self._must_register = asyncio.Event()
        self._looks = asyncio.Event()
        self._ending = False
        self._turn = asyncio.Lock()
        self._said = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, or the server has nothing more for us. A run goes on without us."""
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(self._follow(stop)),
                tasks.create_task(self._beat()),
                tasks.create_task(self._watch(stop)),
            ]
            await stop.wait()
            for loop in loops:
                loop.cancel()

    # ---- what the server says ----------------------------------------------------------------------------------------

    async def _follow(self, stop: asyncio.Event) -> None:
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            try:
                path = await self._register()
                pause_s = _FIRST_PAUSE_S
                await self._obey(path)
            except ServerRefused as refusal:
                self._say_once(f"the server refuses us: {refusal}")
            except _NOT_NOW as away:
                self._say_once(_why(away, self._server.url))
            await asyncio.sleep(pause_s)  # the server is given time; nothing is waited for
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _register(self) -> str:
        self._must_register.clear()
        current = self._own()
        found = await gpus()
        named = {"name": found[0].name, "count": len(found)} if found else {"name": "CPU", "count": 0}
        body: dict[str, Any] = {
            "name": self._options.name,
            "gpu_info": {**named, "gpus": [msgspec.to_builtins(gpu) for gpu in found]},
            "labels": self._options.labels,
            "provider": self._options.provider,
            "current_job_id": current.job_id if current else None,
            "current_attempt_id": str(current.attempt_id) if current else None,
        }
        answer = await self._server.register(body)
        self._worker_id = answer.worker_id
        self._say_once(f"registered as {answer.worker_id}")
        if answer.abandon_job is not None:
            await self._abandon(answer.abandon_job)
        if answer.resume_job is not None:
            self._say(f"going on with job {answer.resume_job.job_id}")
            if answer.resume_job.token:  # it has not been told that it was begun: this is all that a start needs
                await self._take(answer.resume_job)
        return answer.sse_url

    async def _obey(self, path: str) -> None:
        """Does what the stream says until it ends or we have to register anew."""
        orders = self._server.orders(path)
        anew = asyncio.create_task(self._must_register.wait())
        coming = asyncio.ensure_future(anext(orders))
        try:
            while True:
                await asyncio.wait({coming, anew}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                await self._do(coming.result())
                coming = asyncio.ensure_future(anext(orders))
        except StopAsyncIteration:
            return
        finally:
            for waiting in (coming, anew):
                waiting.cancel()
            await asyncio.gather(coming, anew, return_exceptions=True)
            await orders.aclose()

    async def _do(self, order: Order) -> None:
        match order.name:
            case "job_submit":
                await self._take(msgspec.json.decode(order.data, type=WorkerJob))
            case "job_cancel":
                await self._cancel(msgspec.json.decode(order.data, type=WorkerCancel))
            case "drain":
                self._say("draining: no more jobs after this one")
            case "shutdown":
                self._say("the server has nothing more for this worker")
                self._ending = True
                if (current := self._state.current) is not None:
                    await self._abandon(current.job_id)
                self._looks.set()
            case "error":
                raise TokenRefused
            case _:  # ping, and what newer servers may say
                return

    async def _take(self, job: WorkerJob) -> None:
        async with self._turn:
            current = self._state.current
            if current is not None and str(current.attempt_id) != job.attempt_id:
                self._next = job  # ours has ended and is about to be told
                return
            self._job = job
            if current is None:
                self._say(f"job {job.job_id}: attempt {job.attempt_id}")
                self._state.keep(Current(job_id=job.job_id, attempt_id=_id(job), epoch=job.epoch))
            self._looks.set()

    async def _cancel(self, order: WorkerCancel) -> None:
        async with self._turn:
            current = self._state.current
            if self._next is not None and self._next.attempt_id == order.attempt_id:
                self._next = None
            if current is None or str(current.attempt_id) != order.attempt_id:
                never = Current(job_id=order.job_id, attempt_id=UUID(order.attempt_id), epoch=0)
                await self._report(never, "cancelled", exit_code=int(ExitCode.PREEMPTED))
                return
            self._say(f"job {order.job_id} is cancelled")
            await self._machine.end(current.attempt_id, current.epoch, order.grace_s)
            self._looks.set()

    async def _abandon(self, job_id: str) -> None:
        async with self._turn:
            current = self._state.current
            if current is None or current.job_id != job_id:
                return
            if not current.abandoned:
                self._say(f"job {job_id} is not ours any more: its run is ended")
                self._state.keep(replace(current, abandoned=True))
            await self._machine.end(current.attempt_id, current.epoch, ABANDON_GRACE_S)
            self._looks.set()

    # ---- what we tell ------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._options.heartbeat_s)
            if self._worker_id is None:
                continue
            current = self._own()
            body = {
                "worker_id": self._worker_id,
                "status": "busy" if current else "idle",
                "current_job_id": current.job_id if current else None,
                "current_attempt_id": str(current.attempt_id) if current else None,
            }
            try:
                if (job_id := await self._server.beat(body)) is not None:
                    await self._abandon(job_id)
            except ServerRefused as refusal:
                self._say_once(f"the server refuses our heartbeat: {refusal}")
            except _NOT_NOW as away:
                self._say_once(_why(away, self._server.url))

    async def _watch(self, stop: asyncio.Event) -> None:
        pause_s = _LOOK_S
        while True:
            try:
                async with self._turn:
                    await self._look()
                pause_s = _LOOK_S
            except _NOT_NOW as away:
                self._say_once(_why(away, self._server.url))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            if self._ending and self._state.current is None:
                stop.set()
                return
            await self._nap(pause_s)

    async def _nap(self, limit_s: float) -> None:
        self._looks.clear()
        try:
            async with asyncio.timeout(limit_s):
                await self._looks.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        current = self._state.current
        if current is None and (job := self._next) is not None:
            self._job, self._next = job, None
            self._say(f"job {job.job_id}: attempt {job.attempt_id}")
            current = Current(job_id=job.job_id, attempt_id=_id(job), epoch=job.epoch)
            self._state.keep(current)
        if current is None:
            return
        run = await self._machine.look(current.attempt_id)
        if current.abandoned:
            await self._bury(current, run)
        elif run is None:
            await self._start(current)
        else:
            await self._tell(current, run)

    async def _bury(self, current: Current, run: Run | None) -> None:
        if await self._machine.is_over(current.attempt_id):
            self._forget(current, run)
        else:
            await self._machine.end(current.attempt_id, current.epoch, ABANDON_GRACE_S)

    async def _start(self, current: Current) -> None:
        """Starts the run; a start that was interrupted is found by its claim."""
        if current.told_begun:  # its folder was taken away
            self._drop(current)
            return
        job = self._job
        if job is None or _id(job) != current.attempt_id:  # we were restarted: the server tells it again
            return
        spec = msgspec.json.encode({**job.run_spec, "gateway_url": self._server.url})
        try:
            await self._machine.start(current.attempt_id, current.epoch, spec, job.token, job.max_run_s)
        except CannotStart as refusal:
            self._say(f"{refusal.message} {refusal.advice}")
            words = f"{refusal.message} {refusal.advice}"
            await self._report(current, "failed", exit_code=int(ExitCode.INTERNAL), error=words)
            self._state.keep(None)
            return
        self._looks.set()

    async def _tell(self, current: Current, run: Run) -> None:
        if not current.told_begun:
            if not await self._report(current, "running"):
                self._state.keep(replace(current, abandoned=True))
                return
            current = replace(current, told_begun=True)
            self._state.keep(current)
            self._job = None  # the token is the trainer's alone from here on
        if run.word not in {"exited", "gone"} or not await self._machine.is_over(current.attempt_id):
            return
        if run.exit_code is None:
            self._drop(current)
            return
        status = {0: "completed", int(ExitCode.PREEMPTED): "cancelled"}.get(run.exit_code, "failed")
        since = (datetime.now(UTC) - run.ended_at).total_seconds() if run.ended_at else 0.0
        ended = {"exit_code": run.exit_code, "error": run.last_words or None, "ended_s_ago": max(0.0, since)}
        await self._report(current, status, **ended)
        self._say(f"job {current.job_id}: {status} (exit code {run.exit_code})")
        self._forget(current, run)

    async def _report(self, current: Current, status: str, **more: Any) -> bool:
        """Whether the server took it; False when the run is not ours any more."""
        try:
            await self._server.report(current.job_id, current.attempt_id, status, **more)
        except ServerRefused as refusal:
            self._say(f"job {current.job_id}: {refusal}")
            return False
        return True

    def _drop(self, current: Current) -> None:
        """The run left no word of how it ended: the server learns that we have it no more, and judges."""
        self._say(f"job {current.job_id}: its run is gone without a word")
        self._state.keep(None)
        self._must_register.set()

    def _forget(self, current: Current, run: Run | None) -> None:
        """Nobody waits for it. What a good end leaves is delivered already; of others the folder stays to be read."""
        self._state.keep(None)
        folder = self._machine.folder(current.attempt_id).root
        if run is not None and run.exit_code == 0:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            self._say(f"its files stay in {folder}")

    def _own(self) -> Current | None:
        current = self._state.current
        return None if current is None or current.abandoned else current

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def _id(job: WorkerJob) -> UUID:
    return UUID(job.attempt_id)


def _why(away: Exception, url: str) -> str:
    if isinstance(away, TokenRefused):
        return f"{url} does not accept our token; put the present one in the token file (a run goes on meanwhile)"
    if isinstance(away, ServerAway):
        return f"{url} does not answer ({away}); trying again"
    return away.message if isinstance(away, CliError) else str(away)
