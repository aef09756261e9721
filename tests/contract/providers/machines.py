"""RunPod pods and Lambda machines, each against its runpod_pods."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.lambda_cloud import LambdaCloud, LambdaSettings
from services.provider_bridge.outbound.vendors.runpod_pods import RunPodPods, RunPodSettings
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble
from tests.simulators import lambda_cloud, runpod_pods
from tests.simulators.faults import Fault, Simulator

TROUBLES: dict[Trouble, Fault] = {
    "500": "500 before",
    "429": "429",
    "html": "html",
    "hang": "hang",
    "reset": "reset",
}
CALLS_PER_MINUTE = 6000
"""Contract tests ask as fast as they can; tests/unit/provider_bridge/test_pace.py is about the pace."""
ANSWER_S = 0.3
"""How long a client of these tests waits for an answer."""


class _MachineCase:
    """What both have in common."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.providers: list[Provider] = []

    def lose_next_reply(self) -> None:
        self._simulator.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self._simulator.always = TROUBLES[kind] if kind is not None else None

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{urlencode(call.query)}", call.headers) for call in self._simulator.calls]

    async def close(self) -> None:
        for provider in self.providers:
            await provider.close()


class RunPodCase(_MachineCase):
    """Pods stand still until the test moves them."""

    def __init__(self, account: runpod_pods.RunPodPods) -> None:
        super().__init__(account)
        self.account = account

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        provider = RunPodPods(
            Materials(
                credentials={"api_key": Secret(key or runpod_pods.KEY)},
                settings=RunPodSettings(
                    api_url=self.account.url, image="someone/tunewright:1", calls_per_minute=CALLS_PER_MINUTE
                ),
                network=NetworkSettings(timeout_s=ANSWER_S),
                installation=installation,
                clock=self.account.clock,
            )
        )
        self.providers.append(provider)
        return provider

    def _pod(self, attempt_id: UUID) -> runpod_pods.Pod:
        return self.account.of(attempt_id.hex)[-1]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.account.of(attempt_id.hex))

    def begin(self, attempt_id: UUID) -> None:
        self.account.begin(self._pod(attempt_id))

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        """The entry ends its own pod after the trainer."""
        pod = self._pod(attempt_id)
        self.account.say(pod, f"the run has ended with {code}; ending this pod")
        self.account.finish(pod)

    def vanish(self, attempt_id: UUID) -> None:
        self.account.vanish(self._pod(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:
        self._pod(attempt_id).status = word

    def lack(self, what: Lack | None) -> None:
        self.account.has_capacity = what != "capacity"
        self.account.balance_usd = 0.0 if what == "funds" else 42.18


class LambdaCase(_MachineCase):
    """Machines stand still until the test moves them. What runs on one is nothing to Lambda."""

    def __init__(self, account: lambda_cloud.LambdaCloud) -> None:
        super().__init__(account)
        self.account = account

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        provider = LambdaCloud(
            Materials(
                credentials={"api_key": Secret(key or lambda_cloud.KEY)},
                settings=LambdaSettings(
                    api_url=self.account.url,
                    git_url="https://git.example/tunewright",
                    calls_per_s=CALLS_PER_MINUTE / 60,
                    launches_per_minute=CALLS_PER_MINUTE,
                ),
                network=NetworkSettings(timeout_s=ANSWER_S),
                installation=installation,
                clock=self.account.clock,
            )
        )
        self.providers.append(provider)
        return provider

    def _machine(self, attempt_id: UUID) -> lambda_cloud.Machine:
        return self.account.of(attempt_id.hex)[-1]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.account.of(attempt_id.hex))

    def begin(self, attempt_id: UUID) -> None:
        self.account.begin(self._machine(attempt_id))

    def finish(self, attempt_id: UUID, code: int = 0) -> None:  # noqa: ARG002 - nobody there can tell
        """The bridge hears of it from the trainer, and terminates the machine."""
        self.account.vanish(self._machine(attempt_id))

    def vanish(self, attempt_id: UUID) -> None:
        self.account.vanish(self._machine(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:
        self._machine(attempt_id).status = word

    def lack(self, what: Lack | None) -> None:
        self.account.shows_capacity_it_lacks = what == "capacity"
        self.account.launch_error = (403, "global/account-inactive") if what == "funds" else None


@asynccontextmanager
async def runpod_case(folder: Path) -> AsyncGenerator[Case]:  # noqa: ARG001 - it writes nothing
    with runpod_pods.RunPodPods() as account:
        account.per_minute = None
        case = RunPodCase(account)
        yield case
        await case.close()


@asynccontextmanager
async def lambda_case(folder: Path) -> AsyncGenerator[Case]:  # noqa: ARG001 - it writes nothing
    with lambda_cloud.LambdaCloud() as account:
        account.call_every_s = account.launch_every_s = None
        case = LambdaCase(account)
        yield case
        await case.close()
