"""A provider that may do to us what real ones do, and its machines. It is not idempotent: each start it takes is a
machine. All that keeps it to one is the fence of epochs that the port asks for.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    LogPage,
    OurRun,
    RunView,
    StaleEpoch,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from shared.contracts import catalogue
from shared.contracts.attempt import AttemptStartIntended
from shared.contracts.offers import Offer
from shared.contracts.run import RunSpec
from shared.eventstore.memory import MemoryEventStore
from shared.problems import Unavailable
from tests.sim.chaos import Chaos
from tests.sim.database import at_once
from tests.sim.process import Process, moment

UNAVAILABLE = "unavailable"
REFUSED = "refused"
LATE = "request late"
ODD = "unknown word"
IGNORED = "ignored"
LAGGING = "lagging"
METHODS = ("submit", "find", "fetch", "cancel", "confirm_gone", "list_ours")
KILLED_BY_US = 143
_LAG_S = 6.0
_LATE_S = (0.5, 40.0)


@dataclass
class Machine:
    """One machine that a start led to, dead or alive; times in virtual seconds."""

    tag: Tag
    spec: RunSpec
    token: str
    started_s: float
    ref: str
    ended_s: float | None = None
    exit_code: int | None = None
    asked_to_end: asyncio.Event = field(default_factory=asyncio.Event)
    trainer_runs: bool = False

    @property
    def lives(self) -> bool:
        """Whether it costs money."""
        return self.ended_s is None


RunTrainer = Callable[[Machine], Coroutine[Any, Any, None]]


class Cloud:
    """The provider's side: fences, machines, and how late its lists are."""

    def __init__(self, chaos: Chaos, run_trainer: RunTrainer, log: MemoryEventStore) -> None:
        self.chaos = chaos
        self._log = log
        self._running: list[asyncio.Task[None]] = []
        self.machines: list[Machine] = []
        self.fences: dict[UUID, int] = {}
        self.unowned: list[str] = []
        """Machines that no intent in the log stood for when they began."""
        self.starting = 0
        """Requests to start that are still on their way."""
        self._run_trainer = run_trainer
        self._loop = asyncio.get_running_loop()

    def of(self, attempt_id: UUID) -> Machine | None:
        """The attempt's first machine."""
        return next((machine for machine in self.machines if machine.tag.attempt_id == attempt_id), None)

    def fence(self, tag: Tag) -> None:
        """Shuts lower epochs out, or us."""
        if tag.epoch < self.fences.get(tag.attempt_id, 0):
            raise StaleEpoch
        self.fences[tag.attempt_id] = tag.epoch

    def start(self, tag: Tag, spec: RunSpec, token: str) -> str:
        """A new machine."""
        self.fence(tag)
        ref = f"run-{len(self.machines) + 1}"
        machine = Machine(tag=tag, spec=spec, token=token, started_s=self._loop.time(), ref=ref)
        self.machines.append(machine)
        self.chaos.note(f"{ref} starts for attempt {tag.attempt_id} under epoch {tag.epoch}")
        if not self._is_intended(tag, token):
            self.unowned.append(f"{ref} of attempt {tag.attempt_id} began without an intent in the log")
        self._running.append(self._loop.create_task(self._run_trainer(machine)))
        return ref

    def _is_intended(self, tag: Tag, token: str) -> bool:
        digest = hashlib.sha256(token.encode()).hexdigest()
        history = at_once(self._log.read_stream(f"attempt-{tag.attempt_id}"))
        events = [catalogue.decode(recorded) for recorded in history]
        return any(
            isinstance(event, AttemptStartIntended) and (event.epoch, event.token_sha256) == (tag.epoch, digest)
            for event in events
        )

    def machine(self, ref: str) -> Machine | None:
        """By its name."""
        return next((machine for machine in self.machines if machine.ref == ref), None)

    def past_s(self, lag_s: float) -> float:
        """A moment that a late list still shows."""
        return self._loop.time() - lag_s

    def moment(self, second: float | None) -> datetime | None:
        """A virtual second as a date."""
        return None if second is None else moment(second)


class SimProvider:
    """The port to the cloud of one bridge process."""

    name = "local"
    capabilities = Capabilities(
        can_cancel=True,
        live_logs=False,
        cost=True,
        spot=True,
        max_run_time_s=None,
        upload_limit_bytes=None,
        site=None,
        default_hardware="simulated",
    )

    def __init__(self, cloud: Cloud, process: Process) -> None:
        self._cloud = cloud
        self._process = process
        self._chaos = cloud.chaos

    async def quote(self) -> list[Offer]:
        """Nobody chooses."""
        return []

    async def logs(self, ref: str, after: str | None) -> LogPage:  # noqa: ARG002 - the port's signature
        """They write none."""
        return LogPage(lines=[], cursor=after)

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """It sends none."""
        raise WebhookRefused("unreadable", "the simulated provider sends no webhooks")

    async def validate_credentials(self) -> Account:
        """Everybody's."""
        return Account(username="simulated")

    async def balance(self) -> Balance:
        """Nobody counts."""
        return Balance(micro_usd=None)

    async def close(self) -> None:
        """Nothing is held open."""

    async def submit(self, order: StartOrder) -> str:
        """Starts a machine; the request may arrive late, the answer may be lost."""
        tag, spec, token = order.tag, order.spec, order.token
        fault = await self._before("submit", REFUSED, LATE)
        if fault == REFUSED:
            raise StartRefused("There is no machine of that kind.", "Choose another one.")
        if fault == LATE:
            self._start_later(tag, spec, token)
            await asyncio.sleep(1.0)
            raise Unavailable("the provider did not answer in time")
        ref = self._cloud.start(tag, spec, token)
        await self._after("submit")
        return ref

    def _start_later(self, tag: Tag, spec: RunSpec, token: str) -> None:
        def arrive() -> None:
            self._cloud.starting -= 1
            try:
                self._cloud.start(tag, spec, token)
            except StaleEpoch:
                self._chaos.note(f"a late start of attempt {tag.attempt_id} is shut out")

        self._cloud.starting += 1
        asyncio.get_running_loop().call_later(self._chaos.between(*_LATE_S), arrive)

    async def find(self, tag: Tag) -> RunView | None:
        """Shuts lower epochs out and looks."""
        await self._before("find")
        self._cloud.fence(tag)
        machine = self._cloud.of(tag.attempt_id)
        await self._after("find")
        return self._view(machine)

    async def fetch(self, ref: str) -> RunView | None:
        """A run, perhaps in a word that nobody knows."""
        fault = await self._before("fetch", ODD)
        view = self._view(self._cloud.machine(ref))
        await self._after("fetch")
        if fault == ODD and view is not None:
            return RunView(ref=ref, word="hibernating")
        return view

    def _view(self, machine: Machine | None) -> RunView | None:
        if machine is None:
            return None
        if machine.lives:
            return RunView(ref=machine.ref, word="running" if machine.trainer_runs else "claimed")
        ended_at = self._cloud.moment(machine.ended_s)
        if machine.exit_code is None:
            return RunView(ref=machine.ref, word="gone", ended_at=ended_at)
        return RunView(ref=machine.ref, word="exited", exit_code=machine.exit_code, ended_at=ended_at)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - the port's signature
        """Asks the machine to end; it may not listen the first time."""
        fault = await self._before("cancel", IGNORED)
        self._cloud.fence(tag)
        machine = self._cloud.machine(ref)
        if machine is not None and fault != IGNORED:
            machine.asked_to_end.set()
        await self._after("cancel")

    async def confirm_gone(self, ref: str) -> bool:
        """Whether it is dead."""
        await self._before("confirm_gone")
        machine = self._cloud.machine(ref)
        await self._after("confirm_gone")
        return machine is None or not machine.lives

    async def list_ours(self) -> list[OurRun]:
        """What lives, or lived some seconds ago."""
        fault = await self._before("list_ours", LAGGING)
        seen_s = self._cloud.past_s(_LAG_S if fault == LAGGING else 0.0)
        runs = [
            OurRun(
                tag=Tag(attempt_id=machine.tag.attempt_id, epoch=self._cloud.fences[machine.tag.attempt_id]),
                ref=machine.ref,
            )
            for machine in self._cloud.machines
            if machine.started_s <= seen_s and (machine.ended_s is None or machine.ended_s > seen_s)
        ]
        await self._after("list_ours")
        return runs

    async def _before(self, method: str, *kinds: str) -> str | None:
        await self._chaos.latency()
        fault = await self._process.step(f"provider:{method}:before", (UNAVAILABLE, *kinds))
        if fault == UNAVAILABLE:
            raise Unavailable("the provider does not answer")
        return fault

    async def _after(self, method: str) -> None:
        if await self._process.step(f"provider:{method}:after", (UNAVAILABLE,)) == UNAVAILABLE:
            raise Unavailable("the provider's answer was lost")
