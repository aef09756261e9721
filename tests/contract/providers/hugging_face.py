"""Hugging Face Jobs, by the Hub's simulator."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.hugging_face import KIND, HuggingFaceSettings
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.simulators.faults import Fault
from tests.simulators.hugging_face import TOKEN, HubJob, HuggingFace

FAULTS: dict[Trouble, Fault] = {
    "500": "500 before",
    "429": "429",
    "html": "html",
    "hang": "hang",
    "reset": "reset before",
}
IMAGE = "registry.example.org/tunewright-trainer:1"


def a_provider(
    simulator: HuggingFace,
    *,
    installation: str = "0a1b2c3d",
    key: str = TOKEN,
    settings: HuggingFaceSettings | None = None,
) -> Provider:
    """The adapter, as the bridge builds it."""
    return KIND.build(
        Materials(
            credentials={"token": Secret(key)},
            settings=settings or HuggingFaceSettings(api_url=simulator.url, image=IMAGE),
            network=NetworkSettings(timeout_s=0.5),
            installation=installation,
            clock=simulator.clock,
        )
    )


class HuggingFaceCase:
    """A run is a job whose labels hold the attempt."""

    def __init__(self, simulator: HuggingFace) -> None:
        self.simulator = simulator
        self.built: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        self.built.append(a_provider(self.simulator, installation=installation, key=key or TOKEN))
        return self.built[-1]

    def jobs(self, attempt_id: UUID) -> list[HubJob]:
        return [job for job in self.simulator.jobs if attempt_id.hex in job.label]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.jobs(attempt_id))

    def begin(self, attempt_id: UUID) -> None:
        self.simulator.begin(self.jobs(attempt_id)[-1])

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        job = self.jobs(attempt_id)[-1]
        job.lines += ["step 1 of 1", "step 1 done"]
        self.simulator.finish(job, code)

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.end(self.jobs(attempt_id)[-1], "DELETED")

    def say(self, attempt_id: UUID, word: str) -> None:
        self.jobs(attempt_id)[-1].stage = word

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]

    def lack(self, what: Lack | None) -> None:
        if what == "capacity":
            not_here("a job waits in SCHEDULING for a machine")
        self.simulator.credit_micro_usd = 1e9 if what is None else 0

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def hugging_face_case(_folder: Path) -> AsyncGenerator[Case]:
    with HuggingFace() as simulator:
        case = HuggingFaceCase(simulator)
        yield case
        for provider in case.built:
            await provider.close()
