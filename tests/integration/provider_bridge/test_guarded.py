"""The breaker around a provider, and its offers in the log: the real adapter against RunPod's simulator."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.provider_bridge.domain.provider import FAILURES, OPEN_FOR, SUCCESSES
from services.provider_bridge.outbound.directory import FixedProviders
from services.provider_bridge.outbound.guarded import GuardedProvider
from services.provider_bridge.outbound.ports import CredentialRefused, NoFunds
from services.provider_bridge.provider_stream import ProviderStreams
from services.provider_bridge.quoting import Quoter
from shared.eventstore.memory import MemoryEventStore
from shared.problems import Unavailable
from tests.contract.providers.machines import RunPodCase
from tests.contract.test_provider import a_tag, an_order
from tests.simulators.faults import Fault, Moment
from tests.simulators.runpod_pods import RunPodPods

NAME = "runpod"
DOWN: Fault = "429 with Retry-After"
"""With a wait that no read waits for: so each failure takes no time."""


class Scene:
    """One account, one log, and as many bridges as a test asks for."""

    def __init__(self, account: RunPodPods) -> None:
        self.account = account
        account.retry_after_s = 120
        self.case = RunPodCase(account)
        self.log = MemoryEventStore()
        self.moment = Moment(datetime(2026, 11, 29, tzinfo=UTC))

    def bridge(self, *, key: str | None = None) -> GuardedProvider:
        """The provider as one process has it."""
        return GuardedProvider(self.case.connect(key=key), ProviderStreams(self.log), self.moment)

    def calls(self) -> int:
        """How many requests the vendor has heard."""
        return len(self.account.calls)

    async def states(self) -> list[str]:
        """The moves of the breaker."""
        return [type_.removeprefix("provider.") for type_ in [row.type for row in await self.log.read()]]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:  # noqa: ARG001 - each test has its own
    with RunPodPods() as account:
        scene = Scene(account)
        yield scene
        await scene.case.close()


async def fail(bridge: GuardedProvider, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Unavailable):
            await bridge.validate_credentials()


async def test_after_five_failures_nobody_calls_and_other_replicas_know_it_too(scene: Scene) -> None:
    first, second = scene.bridge(), scene.bridge()
    scene.account.always = DOWN
    await fail(first, FAILURES)
    heard = scene.calls()
    await fail(first, 3)
    await fail(second, 3)
    assert scene.calls() == heard
    state = await ProviderStreams(scene.log).load(NAME)
    assert (state.breaker.state, state.breaker.failures) == ("open", FAILURES)
    assert await scene.states() == ["breaker_moved.v1"]


async def test_four_failures_and_an_answer_keep_it_closed(scene: Scene) -> None:
    bridge = scene.bridge()
    for _ in range(2):
        scene.account.always = DOWN
        await fail(bridge, FAILURES - 1)
        scene.account.always = None
        assert (await bridge.validate_credentials()).username
    assert await scene.states() == []


async def test_after_a_minute_it_tries_and_two_answers_close_it(scene: Scene) -> None:
    bridge = scene.bridge()
    scene.account.always = DOWN
    await fail(bridge, FAILURES)
    scene.account.always = None
    await fail(bridge, 1)
    scene.moment.pass_s(OPEN_FOR.total_seconds())
    restarted = scene.bridge()
    for _ in range(SUCCESSES):
        await restarted.validate_credentials()
    state = await ProviderStreams(scene.log).load(NAME)
    assert state.breaker.state == "closed"
    assert await scene.states() == ["breaker_moved.v1"] * 3


async def test_a_failure_while_it_tries_opens_it_again_at_once(scene: Scene) -> None:
    bridge = scene.bridge()
    scene.account.always = DOWN
    await fail(bridge, FAILURES)
    scene.moment.pass_s(OPEN_FOR.total_seconds())
    await fail(bridge, 1)
    heard = scene.calls()
    await fail(bridge, 1)
    assert scene.calls() == heard


async def test_no_money_and_a_refused_key_suspend_the_provider_and_are_no_failures(scene: Scene) -> None:
    bridge = scene.bridge()
    scene.case.lack("funds")
    for _ in range(FAILURES + 1):
        with pytest.raises(NoFunds):
            await bridge.submit(an_order(a_tag()))
    state = await ProviderStreams(scene.log).load(NAME)
    assert state.suspended is not None
    assert (state.suspended.kind, state.breaker.state) == ("no_funds", "closed")
    with pytest.raises(CredentialRefused):
        await scene.bridge(key="wrong").validate_credentials()
    state = await ProviderStreams(scene.log).load(NAME)
    assert state.suspended is not None
    assert state.suspended.kind == "credentials_refused"


async def test_no_offer_promises_a_longer_run_than_the_settings_allow(scene: Scene) -> None:
    streams = ProviderStreams(scene.log)
    for limit_s in (None, 3600, 7200):
        quoter = Quoter(
            FixedProviders([scene.bridge()]), streams, scene.moment, interval_s=60, limit_s={NAME: limit_s}.get
        )
        await quoter.round()
        offers = (await streams.load(NAME)).offers
        assert offers
        assert {offer.max_run_s for offer in offers} == {limit_s}


async def test_offers_are_written_once_and_stay_while_the_provider_does_not_answer(scene: Scene) -> None:
    streams = ProviderStreams(scene.log)
    quoter = Quoter(FixedProviders([scene.bridge()]), streams, scene.moment, interval_s=60)
    await quoter.round()
    await quoter.round()
    state = await streams.load(NAME)
    assert state.offers
    assert await scene.states() == ["offers_published.v1"]
    scene.account.always = DOWN
    await quoter.round()
    assert (await streams.load(NAME)).offers == state.offers
