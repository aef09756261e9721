"""The right of way: claimed for a burst of commands alone, heard by every other process, and never given for long."""

import asyncio
from contextlib import AsyncExitStack

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.subjects import EVENTS_STREAM, FRONT_BUSY, SERVICES
from shared.eventstore.relay import Relay
from shared.messaging.right_of_way import MANY_COMMANDS, Claims, RightOfWay
from tests.integration.messaging.harness import LEDGER, PATIENT, Bench, until
from tests.support.bus import connected_bus, stream_api

FOREVER_S = 600.0


async def _hear(client: Client) -> list[str]:
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    await client.subscribe(FRONT_BUSY, cb=hear)  # pyright: ignore[reportUnknownMemberType] - nats-py leaves a future untyped
    await client.flush()
    return heard


@pytest.mark.parametrize("listener", [*SERVICES, "relay"])
async def test_a_burst_of_commands_claims_the_right_of_way_and_fewer_do_not(
    bus_server: EmbeddedNats, listener: str
) -> None:
    async with connected_bus(bus_server, "gateway") as front, connected_bus(bus_server, listener) as other:
        heard, claims = await _hear(other.client), Claims(front.client.publish)
        async with AsyncExitStack() as waiting:
            for _ in range(MANY_COMMANDS - 1):
                await waiting.enter_async_context(claims.waited_for())
            await front.client.flush()
            await other.client.flush()  # what was published before has arrived before the answer
            assert heard == []
            await waiting.enter_async_context(claims.waited_for())

            async def claimed() -> bool:
                return heard == [FRONT_BUSY]

            await until(claimed)


async def test_a_claim_that_cannot_be_sent_does_not_touch_the_command(bus_server: EmbeddedNats) -> None:
    async with connected_bus(bus_server, "gateway") as front:
        claims = Claims(front.client.publish)
    handled = 0
    async with AsyncExitStack() as waiting:  # the connection is closed by now
        for _ in range(MANY_COMMANDS):
            await waiting.enter_async_context(claims.waited_for())
            handled += 1
    assert handled == MANY_COMMANDS


async def _in_hand(bench: Bench, count: int) -> None:
    """Until JetStream has given the consumer so many events, none of them acknowledged."""
    async with bench.relay_bus() as bus:

        async def delivered() -> bool:
            try:
                info = await stream_api(bus).consumer_info(EVENTS_STREAM, LEDGER.name)
            except nats.errors.Error:  # the relay has not made it yet
                return False
            # One more is there when an event that was handled from the log came over JetStream after the claim.
            return (info.num_ack_pending or 0) >= count

        await until(delivered)


async def _all_handled(bench: Bench, positions: list[int]) -> None:
    async def handled() -> bool:
        return await bench.handled() == dict.fromkeys(positions, 1)

    await until(handled)


@pytest.mark.usefixtures("bus_relay")
async def test_a_consumer_rests_while_the_claim_stands_until_somebody_waits_for_it(bench: Bench) -> None:
    right_of_way = RightOfWay(lasts_s=FOREVER_S, longest_s=FOREVER_S)
    async with bench.consuming(pace=PATIENT, right_of_way=right_of_way) as consumer:
        before = await bench.open_accounts(1)
        await _all_handled(bench, before)
        right_of_way.claim()
        positions = await bench.open_accounts(20)
        await _in_hand(bench, len(positions))
        assert await bench.handled() == dict.fromkeys(before, 1)
        assert await consumer.wait_for(positions[-1], 60)
        right_of_way.claim()  # and it still stops at once
    assert await bench.handled() == dict.fromkeys([*before, *positions], 1)


@pytest.mark.usefixtures("bus_relay")
async def test_a_claim_without_end_holds_a_consumer_up_for_the_longest_rest_only(bench: Bench) -> None:
    right_of_way = RightOfWay(lasts_s=FOREVER_S, longest_s=0.05)
    right_of_way.claim()
    async with bench.consuming(pace=PATIENT, right_of_way=right_of_way):
        await _all_handled(bench, await bench.open_accounts(20))


async def test_claims_without_end_do_not_stop_the_relay(bench: Bench, bus_relay: Relay) -> None:
    """Claims come as fast as a bus carries them; the relay's longest rest is shorter than this test's patience."""
    stop = asyncio.Event()

    async def claim_on() -> None:
        async with connected_bus(bench.server, "gateway") as front:
            while not stop.is_set():
                await front.client.publish(FRONT_BUSY)
                await front.client.flush()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(claim_on())
        positions = await bench.open_accounts(3)

        async def published() -> bool:
            return bus_relay.position >= positions[-1]

        await until(published)
        stop.set()
