"""Whatever happens to JetStream, every consumer ends at the same position with the same rows."""

import asyncio
from uuid import uuid4

import msgspec
import pytest
from nats.js.errors import NotFoundError

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import EVENTS_STREAM, SERVICES, STREAMS, Durable
from shared.eventstore.jetstream import jetstream
from shared.eventstore.topology import Topology
from shared.messaging.connection import Bus
from shared.messaging.consumer import Pace
from shared.messaging.handling import Retries
from tests.integration.messaging.harness import LEDGER, METERING, PATIENT, Bench, until
from tests.support.bus import bus_settings, connected_bus, relaying, stream_api


async def _reference(bench: Bench) -> dict[int, int]:
    store = await bench.store_for("billing")
    events = await store.read(categories=("account",), limit=10_000)
    return dict.fromkeys((event.global_position for event in events), 1)


@pytest.mark.usefixtures("bus_relay")
async def test_wiped_jetstream_loses_and_doubles_nothing(bench: Bench) -> None:
    async with bench.consuming() as consumer:
        await bench.open_accounts(100)
        await bench.wipe_jetstream()
        last = (await bench.open_accounts(100))[-1]
        assert await consumer.wait_for(last, 60)
        # The relay rebuilds the stream; all of it is delivered again and dropped.
        await until(lambda: _stream_holds(bench, 200))
        final = (await bench.open_accounts(1))[-1]
        assert await consumer.wait_for(final, 60)
    assert await bench.handled() == await _reference(bench)


async def _stream_holds(bench: Bench, messages: int) -> bool:
    async with bench.relay_bus() as bus:
        try:
            info = await stream_api(bus).stream_info(EVENTS_STREAM)
        except NotFoundError:  # wiped, and not made again yet
            return False
    return info.state.messages >= messages


async def test_incremental_rows_equal_those_of_a_run_without_jetstream(bench: Bench) -> None:
    """The tally's hash depends on the order of handling: over JetStream and from the log it is the same."""
    async with relaying(bench.database, bench.server), bench.consuming() as consumer:
        for _ in range(4):
            await bench.open_accounts(25)
            await bench.wipe_jetstream()
        last = (await bench.open_accounts(1))[-1]
        assert await consumer.wait_for(last, 60)
    over_jetstream = await bench.tally()
    await bench.pool.execute("TRUNCATE seen, tally, inbox, checkpoint")
    bench.server.stop()
    bench.server.start()
    async with bench.consuming() as consumer:
        assert await consumer.wait_for(last, 60)
    assert await bench.tally() == over_jetstream


@pytest.mark.usefixtures("bus_relay")
async def test_consumer_survives_nats_restarts_while_fetching(bench: Bench) -> None:
    pace = Pace(poll_s=60, takeover_s=0.05, retries=Retries())  # the log is not asked: JetStream has to come back
    async with bench.consuming(pace=pace) as consumer:
        for _ in range(5):
            positions = await bench.open_accounts(3)
            await until(lambda last=positions[-1]: _reached(consumer.position, last))
            bench.server.stop()
            bench.server.start()
        final = (await bench.open_accounts(1))[-1]
        await until(lambda: _handled(bench, final))
    assert await bench.handled() == await _reference(bench)


async def _reached(position: int, wanted: int) -> bool:
    return position >= wanted


async def _handled(bench: Bench, position: int) -> bool:
    return position in await bench.handled()


async def test_absent_jetstream_only_slows_down(bench: Bench) -> None:
    async with bench.consuming() as consumer:
        bench.server.stop()
        positions = await bench.open_accounts(10)
        assert await consumer.wait_for(positions[-1], 60)
        bench.server.start()
    assert await bench.handled() == dict.fromkeys(positions, 1)


@pytest.mark.parametrize("durable", [LEDGER, METERING], ids=["one category", "two categories"])
async def test_events_that_jetstream_skips_are_handled_before_the_later_ones(bench: Bench, durable: Durable) -> None:
    """Breaks when the gap is not looked for: the consumer asks the log by itself only every ten minutes here."""
    order: list[int] = []

    async def react(event: RecordedEvent) -> None:
        order.append(event.global_position)

    store = await bench.store_for("billing")
    async with bench.relay_bus() as bus, bench.consuming(durable=durable, react=react, pace=PATIENT) as consumer:
        await Topology(jetstream(bus.client), await store.store_id()).ensure()
        await until(lambda: _reached(int(consumer.is_active), 1))
        make = bench.open_accounts if durable is LEDGER else bench.record_facts
        positions = await make(6)
        for position in (positions[0], positions[3], positions[5]):
            headers = {
                "Nats-Msg-Id": f"{await store.store_id()}:{position}",
                "Tw-Prev-In-Category": str(position - 1),
            }
            await bench.publish(await bench.event_at(position), headers)
        await until(lambda: _reached(consumer.position, positions[-1]))
    assert order == positions


async def test_message_of_another_log_is_not_handled(bench: Bench) -> None:
    async with bench.consuming() as consumer:
        async with relaying(bench.database, bench.server):
            positions = await bench.open_accounts(1)
            assert await consumer.wait_for(positions[-1], 60)
        event = await bench.event_at(positions[0])
        foreign = msgspec.structs.replace(event, event_id=uuid4(), global_position=positions[0] + 1)
        headers = {"Nats-Msg-Id": f"{uuid4()}:{positions[0] + 1}", "Tw-Prev-In-Category": str(positions[0])}
        await bench.publish(foreign, headers)
        await bench.publish(foreign, {"Tw-Prev-In-Category": str(positions[0])})
        async with bench.relay_bus() as bus:
            await until(lambda: _all_acknowledged(bus))
    assert await bench.handled() == dict.fromkeys(positions, 1)


async def _all_acknowledged(bus: Bus) -> bool:
    info = await stream_api(bus).consumer_info(EVENTS_STREAM, LEDGER.name)
    return info.num_pending == 0 and info.num_ack_pending == 0


FORBIDDEN = {
    "publish an event": ("evt.job.submitted.x", SERVICES),
    "delete the stream": (f"$JS.API.STREAM.DELETE.{EVENTS_STREAM}", SERVICES),
    "purge telemetry": (f"$JS.API.STREAM.PURGE.{STREAMS[1].name}", SERVICES),
    "delete a durable": (f"$JS.API.CONSUMER.DELETE.{EVENTS_STREAM}.{LEDGER.name}", SERVICES),
    "answer another's sender": ("_INBOX_gateway.x", [name for name in SERVICES if name != "gateway"]),
    "pull another's durable": (
        f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{LEDGER.name}",
        [name for name in SERVICES if name != "billing"],
    ),
    "command the gateway": ("cmd.gateway.ping", [name for name in SERVICES if name != "gateway"]),
    "command from below": ("cmd.scheduler.submit_job", ["storage", "billing", "provider_bridge"]),
}


@pytest.mark.parametrize("act", FORBIDDEN)
async def test_no_service_may_go_past_its_permissions(bus_server: EmbeddedNats, act: str) -> None:
    subject, users = FORBIDDEN[act]
    for user in users:
        assert await _is_refused(bus_server, user, subject), f"{user} may {act}"


async def _is_refused(server: EmbeddedNats, user: str, subject: str) -> bool:
    """Whether the server reports a violation before it answers a ping that was sent after the message."""
    refused = asyncio.Event()

    class Watched(Bus):
        async def _on_error(self, error: Exception) -> None:
            if "permissions violation" in str(error).lower():
                refused.set()

    bus = await Watched.connect(bus_settings(server, user), service=user, timeout_s=10)
    await bus.client.publish(subject, b"{}")
    await bus.client.flush()
    await bus.close()
    return refused.is_set()


async def test_no_service_may_listen_to_another_ones_replies(bus_server: EmbeddedNats) -> None:
    async with connected_bus(bus_server, "billing") as bus:
        heard: list[object] = []

        async def note(message: object) -> None:
            heard.append(message)

        for subject in ("_INBOX_gateway.>", "cmd.storage.>"):
            await bus.client.subscribe(  # pyright: ignore[reportUnknownMemberType] - an untyped future
                subject, cb=note
            )
        async with connected_bus(bus_server, "gateway") as sender:
            await sender.client.publish("cmd.storage.ping", b"{}", reply=sender.client.new_inbox())
            await sender.client.flush()
        await bus.client.flush()
    assert not heard
