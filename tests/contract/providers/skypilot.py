"""SkyPilot, by a simulator of its API server; tests/vendors/test_skypilot.py asks the real one."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.skypilot import KIND, SkyPilotSettings
from shared.clock import utc_now
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.contract.providers.hugging_face import FAULTS, IMAGE
from tests.simulators.skypilot import TOKEN, ManagedJob, SkyFailed, SkyPilot


def a_provider(
    url: str,
    *,
    installation: str = "0a1b2c3d",
    key: str = TOKEN,
    settings: SkyPilotSettings | None = None,
    timeout_s: float = 0.5,
) -> Provider:
    """The adapter, as the bridge builds it."""
    return KIND.build(
        Materials(
            credentials={"token": Secret(key)},
            settings=settings or SkyPilotSettings(api_url=url, image=IMAGE),
            network=NetworkSettings(timeout_s=timeout_s),
            installation=installation,
            clock=utc_now,
        )
    )


class SkyPilotCase:
    """A run is a managed job named by its label."""

    def __init__(self, simulator: SkyPilot) -> None:
        self.simulator = simulator
        self.built: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        self.built.append(a_provider(self.simulator.url, installation=installation, key=key or TOKEN))
        return self.built[-1]

    def jobs(self, attempt_id: UUID) -> list[ManagedJob]:
        return [job for job in self.simulator.jobs if attempt_id.hex in job.name]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.jobs(attempt_id))

    def begin(self, attempt_id: UUID) -> None:
        self.simulator.begin(self.jobs(attempt_id)[-1])

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        job = self.jobs(attempt_id)[-1]
        job.lines += ["step 1 of 1", f"ERROR trainer.entry.container: exit {code} (some_kind): why"]
        self.simulator.end(job, "FAILED" if code else "SUCCEEDED")

    def vanish(self, attempt_id: UUID) -> None:
        self.simulator.end(self.jobs(attempt_id)[-1], "FAILED_CONTROLLER", "the controller process has gone")

    def say(self, attempt_id: UUID, word: str) -> None:
        self.jobs(attempt_id)[-1].status = word

    def lose_next_reply(self) -> None:
        self.simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.simulator.always = None if kind is None else FAULTS[kind]

    def lack(self, what: Lack | None) -> None:
        if what == "funds":
            not_here("each cloud has a bill of its own")
        failure = SkyFailed("ResourcesUnavailableError", "No launchable resource found for A10G:1.")
        self.simulator.launch_failure = failure if what is not None else None

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{call.query}", call.headers) for call in self.simulator.calls]


@asynccontextmanager
async def skypilot_case(_folder: Path) -> AsyncGenerator[Case]:
    with SkyPilot() as simulator:
        case = SkyPilotCase(simulator)
        yield case
        for provider in case.built:
            await provider.close()
