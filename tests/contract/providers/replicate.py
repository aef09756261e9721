"""Replicate: its simulator, behind our adapter and the vendor's client."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.replicate import KIND, ReplicateSettings
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.simulators.faults import Fault
from tests.simulators.replicate import DESTINATION, KEY, TRAINER, Replicate, Run

FAULTS: dict[Trouble, Fault] = {
    "500": "500 before",
    "429": "429",
    "html": "html",
    "hang": "hang",
    "reset": "reset before",
}
TIMEOUT_S = 0.6


class ReplicateCase:
    """Runs are moved by the test."""

    def __init__(self, simulator: Replicate) -> None:
        self.simulator = simulator
        self.connected: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        settings = ReplicateSettings(api_url=self.simulator.api_url, model=TRAINER, destination=DESTINATION)
        built = KIND.build(
            Materials(
                credentials={"api_token": Secret(key or KEY)},
                settings=settings,
                network=NetworkSettings(timeout_s=TIMEOUT_S),
                installation=installation,
                clock=self.simulator.clock,
            )
        )
        self.connected.append(built)
        return built

    def _run(self, attempt_id: UUID) -> Run:
        return self.simulator.of(attempt_id.hex)[-1]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.simulator.of(attempt_id.hex))

    def begin(self, attempt_id: UUID) -> None:
        self.simulator.begin(self._run(attempt_id))

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        error = f"exit {code} (some_kind): it is so. Do this" if code else None
        self.simulator.finish(self._run(attempt_id), error=error)

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.interrupt(self._run(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:
        self._run(attempt_id).status = word

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]
        self.simulator.release()

    def lack(self, what: Lack | None) -> None:
        if what == "capacity":
            not_here("it queues what it has no machine for")
        self.simulator.always_creates = None if what is None else "402"

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:
        body = json.dumps(self.simulator.shown_run(self._run(attempt_id))).encode()
        return self.simulator.sign(body), {"attempt": str(attempt_id)}, body

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def replicate_case(_folder: Path) -> AsyncGenerator[Case]:
    with Replicate() as simulator:
        case = ReplicateCase(simulator)
        yield case
        for provider in case.connected:
            await provider.close()
