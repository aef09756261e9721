"""How small rate limits are kept: by one limit for each account, and by one call for all who ask."""

import asyncio
from datetime import UTC, datetime

import pytest

from services.provider_bridge.outbound.egress import Egress, NetworkSettings, RateLimit
from services.provider_bridge.outbound.ports import CredentialRefused
from services.provider_bridge.outbound.vendors.gathering import Gathered
from shared.problems import Unavailable
from shared.settings import Secret
from tests.simulators.loopback import Answer, Loopback

FEW = (RateLimit(calls=2, per_s=3600),)


def an_egress(url: str, key: str) -> Egress:
    headers = {"Authorization": Secret(f"Bearer {key}")}
    return Egress(url, NetworkSettings(), lambda: datetime.now(UTC), headers=headers, limits=FEW)


async def test_all_who_call_with_one_key_keep_its_limit_together() -> None:
    with Loopback(lambda _call: Answer(200, {})) as vendor:
        first, second, other = (an_egress(vendor.url, key) for key in ("a", "a", "b"))
        await first.get("/")
        await second.get("/")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await first.get("/")
        await other.get("/")
        assert len(vendor.calls) == 3
        for egress in (first, second, other):
            await egress.close()


class Counted:
    """A call that waits until it may go on, and numbers its results."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return number


async def settle() -> None:
    """Lets everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_asks_before_a_call_begins_shares_it_and_who_asks_later_gets_the_next() -> None:
    call = Counted()
    asked = Gathered(call, 0.01)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(asked())
        await settle()
        assert call.begun == 1
        later = [group.create_task(asked()) for _ in range(5)]
        await settle()
        call.may_end.set()
    assert await first == 1
    assert [await each for each in later] == [2] * 5


async def test_an_error_reaches_everybody_who_shared_the_call() -> None:
    call = Counted()
    call.may_end.set()
    asked = Gathered(call, 0.01)
    await asked()
    call.error = CredentialRefused("no")
    results = await asyncio.gather(*(asked() for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [CredentialRefused] * 3
    assert call.begun == 2


async def test_when_the_one_who_calls_gives_up_the_others_are_told_and_the_next_may_call() -> None:
    call = Counted()
    asked = Gathered(call, 30)
    call.may_end.set()
    await asked()
    leader = asyncio.ensure_future(asked())
    await settle()
    joined = asyncio.ensure_future(asked())
    await settle()
    leader.cancel()
    with pytest.raises(Unavailable):
        await joined
    with pytest.raises(asyncio.CancelledError):
        await leader
    next_one = asyncio.ensure_future(asked())
    await settle()
    assert not next_one.done(), "it waits for its turn instead of failing"
    next_one.cancel()
