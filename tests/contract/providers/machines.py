"""RunPod pods and Lambda machines, each against its simulator."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.vendors.runpod_pods import RunPodPods, RunPodSettings
from shared.clock import utc_now
from shared.settings import Secret
from tests.contract.providers.case import Case, Lack, Trouble
from tests.simulators import runpod_pods as simulator
from tests.simulators.faults import Fault

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


class RunPodCase:
    """Pods stand still until the test moves them."""

    def __init__(self, account: simulator.RunPodPods) -> None:
        self.account = account
        self.providers: list[Provider] = []

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        provider = RunPodPods(
            Materials(
                credentials={"api_key": Secret(key or simulator.KEY)},
                settings=RunPodSettings(
                    api_url=self.account.url, image="someone/tunewright:1", calls_per_minute=CALLS_PER_MINUTE
                ),
                network=NetworkSettings(timeout_s=ANSWER_S),
                installation=installation,
                clock=utc_now,
            )
        )
        self.providers.append(provider)
        return provider

    def _pod(self, attempt_id: UUID) -> simulator.Pod:
        return self.account.of_attempt(attempt_id.hex)[-1]

    def starts(self, attempt_id: UUID) -> int:
        return len(self.account.of_attempt(attempt_id.hex))

    def begin(self, attempt_id: UUID) -> None:
        self.account.begin(self._pod(attempt_id))

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        """The entry ends its own pod after the trainer."""
        pod = self._pod(attempt_id)
        self.account.say(pod, f"the run has ended with {code}; ending this pod")
        self.account.vanish(pod)

    def vanish(self, attempt_id: UUID) -> None:
        self.account.vanish(self._pod(attempt_id))

    def say(self, attempt_id: UUID, word: str) -> None:
        self._pod(attempt_id).status = word

    def lose_next_reply(self) -> None:
        self.account.next_creates.append("lost reply")

    def trouble(self, kind: Trouble | None) -> None:
        self.account.always = TROUBLES[kind] if kind is not None else None

    def lack(self, what: Lack | None) -> None:
        self.account.has_capacity = what != "capacity"
        self.account.balance_usd = 0.0 if what == "funds" else 42.18

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(f"{call.path}?{urlencode(call.query)}", call.headers) for call in self.account.calls]


@asynccontextmanager
async def runpod_case(folder: Path) -> AsyncGenerator[Case]:  # noqa: ARG001 - it writes nothing
    with simulator.RunPodPods() as account:
        account.per_minute = None
        case = RunPodCase(account)
        yield case
        for provider in case.providers:
            await provider.close()
