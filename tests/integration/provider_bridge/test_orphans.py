"""A start that was given up and takes place after all, beside the run that counts: named, ended and owned."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from services.provider_bridge.domain.attempt_states import Accepted
from services.provider_bridge.provider_stream import provider_stream
from shared.contracts import catalogue
from shared.contracts.provider import ProviderOrphanEnded, ProviderOrphanFound
from shared.ids import new_id
from tests.provider_faults.vendors import VENDORS
from tests.provider_faults.world import World
from tests.simulators.faults import Moment
from tests.support.log import LogDatabase

PAID = ("runpod", "lambda", "replicate", "runpod_serverless", "huggingface")


@pytest.fixture(params=PAID)
async def world(request: pytest.FixtureRequest, log_database: LogDatabase) -> AsyncIterator[World]:
    moment = Moment(datetime(2026, 11, 29, tzinfo=UTC))
    vendor = VENDORS[request.param](moment)
    with vendor.simulator:
        async with asyncpg.create_pool(log_database.dsn("provider_bridge"), min_size=1, max_size=8) as pool:
            world = World(1, pool, vendor, moment)
            yield world
            await world.close()


async def told(world: World) -> list[object]:
    rows = await world.store.read_stream(provider_stream(f"{world.provider.name}/1"))
    return [catalogue.decode(row) for row in rows]


async def test_a_second_run_of_a_stale_epoch_is_ended_and_the_first_lives_on(world: World) -> None:
    offer = next(one for one in await world.provider.quote() if one.availability != "none")
    attempt_id = await world.request(offer)
    await world.drive()
    state = await world.state(attempt_id)
    assert isinstance(state, Accepted)
    await world.start_late(attempt_id, offer)
    refs = {run.ref for run in await world.provider.list_ours()}
    assert len(refs) == 2
    for _ in range(3):
        await world.sweep()
        world.moment.pass_s(5.0)
    assert [run.ref for run in await world.provider.list_ours()] == [state.provider_ref]
    assert isinstance(await world.state(attempt_id), Accepted)
    found, ended = await told(world)
    assert isinstance(found, ProviderOrphanFound)
    assert isinstance(ended, ProviderOrphanEnded)
    assert (found.why, {found.ref}) == ("second_run", refs - {state.provider_ref})
    assert ended.job_id is not None


async def test_a_run_of_an_attempt_that_nobody_knows_is_ended_and_is_the_operators(world: World) -> None:
    offer = next(one for one in await world.provider.quote() if one.availability != "none")
    await world.start_late(new_id(), offer)
    for _ in range(3):
        await world.sweep()
        world.moment.pass_s(5.0)
    assert await world.provider.list_ours() == []
    found, ended = await told(world)
    assert isinstance(found, ProviderOrphanFound)
    assert isinstance(ended, ProviderOrphanEnded)
    assert (found.why, ended.job_id) == ("unknown_attempt", None)
