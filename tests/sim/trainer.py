"""A trainer on its machine: it reports line by line through the gateway, repeats what was not acknowledged, and ends as
its fate says.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol
from uuid import UUID

import msgspec

from shared.contracts.run import ExitCode, ReportAck, ReportLine
from shared.problems import Rejected, Unavailable
from tests.sim.chaos import Chaos
from tests.sim.process import moment
from tests.sim.provider import Machine

FATES = ("done", "done", "done", "done", "failed", "exits", "preempted", "killed", "vanishes", "silent", "late exit")
FAILURES = ("bad_config", "bad_data", "unreachable", "internal", "out_of_memory", "nan_loss", "preempted")
EXITS = (ExitCode.INTERNAL, ExitCode.BAD_DATA, ExitCode.OUT_OF_MEMORY, ExitCode.UNREACHABLE, -9, 137, 3)
_TRIES = 60
_GRACE_S = 1.0
_BOOT_S = (0.1, 6.0)
_SLOW_BOOT_S = 45.0
_STEP_S = (0.2, 4.0)
_MAX_STEPS = 4


class ConnectionLost(Exception):  # noqa: N818 - a state of the network
    """No answer: whether the request was carried out is not known."""


class Gateway(Protocol):
    """What a trainer can reach."""

    async def report(self, attempt_id: UUID, token: str, body: bytes) -> ReportAck:
        """POST …/events. Raises ConnectionLost, Rejected or Unavailable."""
        ...

    async def upload(self, job_id: UUID, attempt_id: UUID, token: str, key: str, content: bytes) -> None:
        """PUT of an output."""
        ...


class _Ended(Exception):  # noqa: N818 - the trainer's own end
    """The process ends with this code; None: without a trace."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Trainer:
    """One run of the training program."""

    machine: Machine
    gateway: Gateway
    chaos: Chaos
    random: Random
    fate: str

    def __post_init__(self) -> None:
        self.attempt_id = UUID(self.machine.spec.attempt_id)
        self._job_id = UUID(self.machine.spec.job_id)
        self._lines: list[ReportLine] = []
        self.acked = 0
        self._stop = False
        self._artifacts: list[dict[str, Any]] = []
        self._undelivered: list[str] = []

    async def run(self) -> None:
        """From boot to end; the machine is dead afterwards."""
        loop = asyncio.get_running_loop()
        living = loop.create_task(self._live())
        asked = loop.create_task(self._asked())
        try:
            await asyncio.wait([living, asked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        code: int | None = 143
        if living.done():
            code = living.result()
        else:
            living.cancel()
        self.machine.exit_code = code
        self.machine.ended_s = loop.time()
        self.chaos.note(f"{self.machine.ref} ends with {code} ({self.fate})")

    async def _asked(self) -> None:
        """A machine that is asked to end does so after its grace, unless the trainer is faster."""
        await self.machine.asked_to_end.wait()
        self._stop = True
        await asyncio.sleep(_GRACE_S)

    async def _live(self) -> int | None:
        try:
            await self._train()
        except _Ended as ended:
            return ended.code
        except Rejected as refusal:
            return ExitCode.SUPERSEDED if refusal.code == "attempt_superseded" else ExitCode.INTERNAL
        return ExitCode.DONE

    async def _train(self) -> None:
        slow = self.random.random() < 0.05
        await asyncio.sleep(_SLOW_BOOT_S if slow else self._between(*_BOOT_S))
        if self.fate == "silent":
            raise _Ended(None)
        self.machine.trainer_runs = True
        await self._say("hello", {"device": "simulated", "trainer_version": "0"})
        steps = 1 + self.random.randrange(_MAX_STEPS)
        first = self.machine.spec.resume.step if self.machine.spec.resume else 0
        for step in range(first + 1, first + steps + 1):
            await asyncio.sleep(self._between(*_STEP_S))
            await self._end_if_told()
            await self._say("metrics", {"step": step, "loss": 0.5})
            if self.random.random() < 0.5:
                await self._checkpoint(step)
            if step == first + steps:
                await self._meet_fate()
        await self._finish(first + steps)

    async def _end_if_told(self) -> None:
        if self._stop:
            raise _Ended(ExitCode.PREEMPTED)

    async def _meet_fate(self) -> None:
        match self.fate:
            case "failed":
                kind = self.random.choice(FAILURES)
                await self._say("failed", {"kind": kind, "message": f"it was {kind}", "advice": None})
                raise _Ended(ExitCode.INTERNAL)
            case "exits":
                raise _Ended(self.random.choice(EXITS))
            case "preempted":
                await self._checkpoint(99)
                raise _Ended(ExitCode.PREEMPTED)
            case "killed":
                raise _Ended(-9)
            case "vanishes":
                raise _Ended(None)
            case _:
                return

    async def _checkpoint(self, step: int) -> None:
        key = f"{self._job_id}/checkpoint-{step}/state"
        content = f"{key}".encode()
        await self._upload(key, content)
        file = {"name": "state", **_named(content), "object_key": key}
        await self._say("checkpoint", {"step": step, "files": [file]})

    async def _finish(self, steps: int) -> None:
        for number in range(self.random.randrange(3)):
            name, key = f"out-{number}", f"{self._job_id}/out-{number}"
            content = f"{key} by {self.machine.ref}".encode()
            if self.random.random() < 0.15:
                self._undelivered.append(name)
                continue
            await self._upload(key, content)
            self._artifacts.append({"name": name, "object_key": key, **_named(content)})
        for file in self._artifacts:
            told = {"target": "hub:ann/digits", "what": file["name"], "files": [file["name"]]}
            status = {"status": "failed", "message": "as it goes"} if self._undelivered else {"status": "delivered"}
            await self._say("delivery", {**told, **status})
        result = {"steps": steps, "final_loss": 0.1, "artifacts": self._artifacts, "undelivered": self._undelivered}
        await self._say("done", result)
        if self.fate == "late exit":
            await asyncio.sleep(self._between(5.0, 90.0))

    async def _upload(self, key: str, content: bytes) -> None:
        async def put() -> None:
            await self.gateway.upload(self._job_id, self.attempt_id, self.machine.token, key, content)

        await self._insist(put)

    async def _say(self, type_: str, data: dict[str, Any]) -> None:
        """Numbers a line and hands in everything that is not acknowledged, until it is."""
        now = moment(asyncio.get_running_loop().time())
        self._lines.append(
            ReportLine(
                job=str(self._job_id),
                attempt=str(self.attempt_id),
                seq=len(self._lines) + 1,
                ts=now,
                type=type_,
                data=data,
            )
        )
        if type_ == "metrics" and self.random.random() < 0.5:
            return

        async def hand_in() -> None:
            while self.acked < len(self._lines):
                body = b"\n".join(msgspec.json.encode(line) for line in self._lines[self.acked :])
                ack = await self.gateway.report(self.attempt_id, self.machine.token, body)
                self.acked = max(self.acked, ack.ack)
                self._stop = self._stop or any(command.name == "stop" for command in ack.commands)

        await self._insist(hand_in)

    async def _insist(self, request: Callable[[], Awaitable[None]]) -> None:
        for attempt in range(_TRIES):
            try:
                await request()
            except (ConnectionLost, Unavailable):
                await asyncio.sleep(min(0.2 * 2**attempt, 5.0))
            except Rejected as refusal:
                if refusal.code not in {"invalid_job_state", "internal_error", "version_conflict"}:
                    raise
                await asyncio.sleep(min(0.2 * 2**attempt, 5.0))
            else:
                return
        raise _Ended(ExitCode.UNREACHABLE)

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()


def _named(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
