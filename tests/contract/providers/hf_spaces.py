"""Hugging Face Spaces, by the Hub's simulator."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.hugging_face_spaces import KIND, SpacesSettings
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.contract.providers.hugging_face import FAULTS, IMAGE
from tests.simulators.hugging_face import TOKEN, HuggingFace, Space


def a_provider(
    simulator: HuggingFace,
    *,
    installation: str = "0a1b2c3d",
    key: str = TOKEN,
    settings: SpacesSettings | None = None,
) -> Provider:
    """The adapter, as the bridge builds it."""
    return KIND.build(
        Materials(
            credentials={"token": Secret(key)},
            settings=settings or SpacesSettings(api_url=simulator.url, image=IMAGE),
            network=NetworkSettings(timeout_s=0.5),
            installation=installation,
            clock=simulator.clock,
        )
    )


class SpacesCase:
    """A run is a Space whose name holds the attempt."""

    def __init__(self, simulator: HuggingFace) -> None:
        self.simulator = simulator
        self.built: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        self.built.append(a_provider(self.simulator, installation=installation, key=key or TOKEN))
        return self.built[-1]

    def newest(self, attempt_id: UUID) -> Space:
        return [space for space in self.simulator.spaces.values() if attempt_id.hex in space.name][-1]

    def starts(self, attempt_id: UUID) -> int:
        return sum(attempt_id.hex in name for name in self.simulator.starts)

    def begin(self, attempt_id: UUID) -> None:
        space = self.newest(attempt_id)
        for stage in ("APP_STARTING", "RUNNING"):
            self.simulator.show_space(space, stage)

    def finish(self, attempt_id: UUID, code: int = 0) -> None:  # noqa: ARG002 - a Space knows no exit codes
        space = self.newest(attempt_id)
        space.lines += ["step 1 of 1", "step 1 done"]
        self.simulator.show_space(space, "PAUSED")  # which the program inside asks for

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.show_space(self.newest(attempt_id), "STOPPED")

    def say(self, attempt_id: UUID, word: str) -> None:
        self.newest(attempt_id).stage = word

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]

    def lack(self, what: Lack | None) -> None:
        if what == "capacity":
            not_here("a Space waits for its hardware")
        self.simulator.credit_micro_usd = 1e9 if what is None else 0

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def hf_spaces_case(_folder: Path) -> AsyncGenerator[Case]:
    with HuggingFace() as simulator:
        case = SpacesCase(simulator)
        yield case
        for provider in case.built:
            await provider.close()
