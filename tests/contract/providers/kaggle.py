"""Kaggle, by its simulator."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.kaggle import KIND, KaggleSettings
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble
from tests.simulators.faults import Fault
from tests.simulators.kaggle import KEY, SESSIONS_FULL, USER, Kaggle

FAULTS: dict[Trouble, Fault] = {
    "500": "500 before",
    "429": "429",
    "html": "html",
    "hang": "hang",
    "reset": "reset before",
}
SOURCE = "https://git.example.org/tunewright.git"


def a_provider(
    simulator: Kaggle, *, installation: str = "0a1b2c3d", key: str = KEY, settings: KaggleSettings | None = None
) -> Provider:
    """The adapter, as the bridge builds it."""
    return KIND.build(
        Materials(
            credentials={"username": Secret(USER), "key": Secret(key)},
            settings=settings or KaggleSettings(api_url=simulator.url, source_git=SOURCE),
            network=NetworkSettings(timeout_s=0.5),
            installation=installation,
            clock=simulator.clock,
        )
    )


class KaggleCase:
    """A run is a kernel whose slug holds the attempt."""

    def __init__(self, simulator: Kaggle) -> None:
        self.simulator = simulator
        self.built: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        self.built.append(a_provider(self.simulator, installation=installation, key=key or KEY))
        return self.built[-1]

    def refs(self, attempt_id: UUID) -> list[str]:
        return [ref for ref in self.simulator.kernels if attempt_id.hex in ref]

    def starts(self, attempt_id: UUID) -> int:
        return sum(len(self.simulator.kernels[ref]) for ref in self.refs(attempt_id))

    def begin(self, attempt_id: UUID) -> None:
        self.simulator.begin(self.refs(attempt_id)[-1])

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        ref = self.refs(attempt_id)[-1]
        self.simulator.write(ref, "step 1 of 1")
        self.simulator.write(ref, f"tunewright: exit code {code}")
        self.simulator.finish(ref, code)

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.vanish(self.refs(attempt_id)[-1])

    def say(self, attempt_id: UUID, word: str) -> None:
        self.simulator.say(self.refs(attempt_id)[-1], word)

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]

    def lack(self, what: Lack | None) -> None:
        texts = {
            "capacity": SESSIONS_FULL.format(2),
            "funds": "You have exceeded your weekly GPU quota of 30 hours.",
        }
        self.simulator.refusal_text = "" if what is None else texts[what]

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def kaggle_case(_folder: Path) -> AsyncGenerator[Case]:
    with Kaggle() as simulator:
        case = KaggleCase(simulator)
        yield case
        for provider in case.built:
            await provider.close()
