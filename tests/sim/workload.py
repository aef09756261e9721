"""What people do in one seed: submit, submit again because the answer was lost, change their mind."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from services.gateway.domain.submission import SubmitJobRequest
from services.gateway.handlers import Principal
from services.scheduler.domain.queue_policy import Limits
from shared.problems import Rejected, Unavailable
from tests.sim.chaos import Chaos
from tests.sim.gateway import GatewayDoors
from tests.sim.services import Setup
from tests.sim.system import System
from tests.sim.trainer import ConnectionLost

_TRIES = 200
_PAUSE_S = 0.5
_SUBMITS_WITHIN_S = (0.5, 4.0, 15.0)
_CANCELS_WITHIN_S = 40.0
_REPLICAS = ("scheduler", "provider_bridge")
_SINGLE = ("storage", "billing", "gateway", "relay")


def draw_setup(random: Random) -> Setup:
    """Limits, prices and replicas of a seed."""
    in_all = random.randint(1, 3)
    replicas = {service: random.randint(1, 2) for service in _REPLICAS}
    replicas |= {service: 2 if random.random() < 0.1 else 1 for service in _SINGLE}
    return Setup(
        limits=Limits(in_all=in_all, per_user=random.randint(1, in_all)),
        price_micro_usd_per_hour=random.choice([0, 1, 3_600, 2_490_000]),
        floor_micro_usd=random.choice([None, None, None, -20_000]),
        replicas=replicas,
    )


@dataclass
class Person:
    """Somebody who wants one job, and remembers every answer."""

    system: System
    chaos: Chaos
    number: int
    user_id: str
    wants_cancel: bool
    within_s: float
    answers: set[UUID] = field(default_factory=set[UUID])
    refusals: list[str] = field(default_factory=list[str])
    cancel_accepted: bool = False

    def __post_init__(self) -> None:
        random = self.chaos.random
        self._answered = asyncio.Event()
        self._body = SubmitJobRequest(
            config={"--model_family": "flux", "--model_type": "lora", "--max_train_steps": random.randint(1, 9)},
            dataloader_config=_dataloader(random, self.number),
            priority=random.choice(["low", "normal", "high"]),
        )
        self._principal = Principal(user_id=self.user_id, is_admin=False, source_ip=None)
        self._submit_at = self.chaos.between(0.0, self.within_s)
        self._again = random.randint(0, 2)
        self._cancel_after = self.chaos.between(0.0, _CANCELS_WITHIN_S) * random.random()

    async def act(self) -> None:
        """Everything that this person does."""
        await asyncio.sleep(self._submit_at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._submit())
            for _ in range(self._again):
                tasks.create_task(self._submit_again())
            if self.wants_cancel:
                tasks.create_task(self._cancel())

    async def _submit_again(self) -> None:
        await asyncio.sleep(self.chaos.between(0.0, 5.0))
        await self._submit()

    async def _submit(self) -> None:
        async def ask(doors: GatewayDoors) -> UUID:
            key = f"key-{self.number}"
            answer = await doors.commands.submit(self._body, provider="local", key=key, principal=self._principal)
            return UUID(answer.job_id)

        answer = await self._insist("submit", ask)
        if answer is not None:
            self.answers.add(answer)
            self._answered.set()

    async def _cancel(self) -> None:
        await asyncio.sleep(self._cancel_after)
        await self._answered.wait()
        job_id = next(iter(self.answers))

        async def ask(doors: GatewayDoors) -> UUID:
            await doors.commands.cancel(job_id, self._principal)
            return job_id

        self.cancel_accepted = await self._insist("cancel", ask) is not None

    async def _insist(self, place: str, ask: Callable[[GatewayDoors], Awaitable[UUID]]) -> UUID | None:
        for _ in range(_TRIES):
            try:
                return await self.system.request("gateway", place, ask)
            except (ConnectionLost, Unavailable):
                await asyncio.sleep(_PAUSE_S * 4 * self.chaos.random.random())
            except Rejected as refusal:
                if refusal.code != "version_conflict":
                    self.refusals.append(f"{place}: {refusal}")
                    return None
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError(f"{place} was never answered")


def _dataloader(random: Random, number: int) -> list[dict[str, object]]:
    folder = "/unusable" if random.random() < 0.08 else f"/data/{number}"
    return [{"id": "pictures", "type": "local", "dataset_type": "image", "instance_data_dir": folder}]


def draw_people(system: System, chaos: Chaos) -> list[Person]:
    """One to four jobs of one or two users."""
    random = chaos.random
    users = ["ann", "bob"][: random.randint(1, 2)]
    within_s = random.choice(_SUBMITS_WITHIN_S)
    return [
        Person(
            system=system,
            chaos=chaos,
            number=number,
            user_id=random.choice(users),
            within_s=within_s,
            wants_cancel=random.random() < 0.4,
        )
        for number in range(random.randint(1, 4))
    ]
