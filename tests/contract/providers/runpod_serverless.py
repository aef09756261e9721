"""RunPod serverless: its job API, behind our adapter and the vendor's client."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.runpod_serverless import KIND, RunPodServerlessSettings
from services.provider_bridge.outbound.vendors.runpod_serverless_webhooks import secret_query
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.simulators.faults import Fault
from tests.simulators.runpod_queue import ENDPOINT, KEY, QueuedJob, RunPodQueue

FAULTS: dict[Trouble, Fault] = {
    "500": "500 before",
    "429": "429",
    "html": "html",
    "hang": "hang",
    "reset": "reset before",
}
TIMEOUT_S = 0.6


class RunPodServerlessCase:
    """Jobs are moved by the test."""

    def __init__(self, simulator: RunPodQueue) -> None:
        self.simulator = simulator
        self.connected: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        simulator = self.simulator
        settings = RunPodServerlessSettings(
            api_url=simulator.api_url, control_url=simulator.control_url, endpoint_id=ENDPOINT
        )
        built = KIND.build(
            Materials(
                credentials={"api_key": Secret(key or KEY)},
                settings=settings,
                network=NetworkSettings(timeout_s=TIMEOUT_S),
                installation=installation,
                clock=simulator.clock,
            )
        )
        self.connected.append(built)
        return built

    def _job(self, attempt_id: UUID) -> QueuedJob:
        return self.simulator.of(attempt_id.hex)[-1]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.simulator.of(attempt_id.hex))

    def begin(self, attempt_id: UUID) -> None:
        job = self._job(attempt_id)
        self.simulator.begin(job)
        job.output = {"phase": "preparing", "label": job.label}  # as our handler posts at once

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        error = f"exit {code} (some_kind): it is so. Do this" if code else None
        self.simulator.finish(self._job(attempt_id), {"exit_code": code, "attempt_id": str(attempt_id)}, error)

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.crash(self._job(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:
        self._job(attempt_id).status = word

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]
        self.simulator.release()

    def lack(self, what: Lack | None) -> None:
        if what == "capacity":
            not_here("it queues what it has no worker for")
        self.simulator.always_creates = None if what is None else "402"

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:
        job = self._job(attempt_id)
        return {}, secret_query(Secret(KEY), job.label), json.dumps(job.view(with_input=False)).encode()

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def runpod_serverless_case(_folder: Path) -> AsyncGenerator[Case]:
    with RunPodQueue() as simulator:
        case = RunPodServerlessCase(simulator)
        yield case
        for provider in case.connected:
            await provider.close()
