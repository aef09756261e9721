"""Billing on a real log and bus: one reservation per job whatever the month, exact limits, usage before settlement."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from deploy.embedded.nats import EmbeddedNats
from services.billing.app import build
from services.billing.domain.pricing import Catalogue, Offer
from services.billing.handlers import Accounts, account_stream
from services.billing.projections.ledger import QUERIES
from services.billing.settings import Settings
from shared.clock import utc_now
from shared.contracts import catalogue
from shared.contracts.account import (
    FundsCaptured,
    FundsRefused,
    FundsReserved,
    ReadJobCost,
    ReserveFunds,
    SettleJob,
    UsageMetered,
)
from shared.contracts.admin import ListParked, RebuildProjections
from shared.contracts.attempt import AttemptCancelled, AttemptRequested, AttemptSucceeded, Quote
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata
from shared.contracts.job import Command, Event
from shared.eventstore.api import Append
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.problems import Rejected
from shared.service import running_service
from shared.settings import load
from tests.support.bus import ServiceSettings, connected_bus
from tests.support.log import LogDatabase, StoreFor
from tests.support.waiting import eventually

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC)
PRICE = 3_600_000
"""1000 micro-dollars a second."""
PRICES = Catalogue(
    offers=(
        Offer(
            provider="local",
            hardware="cpu",
            price_micro_usd_per_hour=PRICE,
            base_seconds=0,
            seconds_per_step=1,
            seconds_without_steps=0,
        ),
    )
)
"""A step costs 1000 micro-dollars."""


def an_envelope() -> CommandEnvelope:
    return CommandEnvelope(command_id=uuid4(), correlation_id=uuid4(), payload=msgspec.Raw(b"{}"))


def a_reservation(job_id: UUID, *, owner: str = "alice", steps: int = 10) -> ReserveFunds:
    return ReserveFunds(job_id=job_id, owner=owner, provider="local", max_train_steps=steps)


@asynccontextmanager
async def a_replica(database: LogDatabase, at: datetime, floor: int | None = None) -> AsyncGenerator[Accounts]:
    """Billing's handlers with connections and a clock of their own."""
    async with asyncpg.create_pool(database.dsn("billing"), min_size=1, max_size=4) as pool:
        store = PostgresEventStore(pool)
        yield Accounts(pool, store, lambda: at, PRICES, floor)
        await store.close()


@pytest.fixture
async def log(store_for: StoreFor) -> PostgresEventStore:
    return await store_for("billing")


async def story(log: PostgresEventStore, job_id: UUID) -> list[Event]:
    decoded = [catalogue.decode(recorded) for recorded in await log.read_correlated(job_id)]
    return [event for event in decoded if event is not None]


async def accounts_of(log: PostgresEventStore, job_id: UUID) -> set[str]:
    return {recorded.stream for recorded in await log.read_correlated(job_id) if recorded.category == "account"}


async def an_attempt(store: PostgresEventStore, job_id: UUID, *events: Event) -> UUID:
    """An attempt with a quote and whatever happened to it."""
    attempt_id = new_id()
    requested = AttemptRequested(
        job_id=job_id,
        attempt_number=1,
        provider="local",
        quote=Quote(hardware="cpu", price_micro_usd_per_hour=PRICE),
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        requested_at=utc_now(),
    )
    append = Append(
        stream=f"attempt-{attempt_id}",
        expected_version=0,
        events=[requested, *events],
        meta=EventMetadata(),
        correlation_id=job_id,
    )
    await store.append(append)
    return attempt_id


def succeeded(seconds: int) -> AttemptSucceeded:
    return AttemptSucceeded(
        steps=1, final_loss=None, artifacts=[], undelivered=[], ended_at=utc_now(), billed_seconds=seconds
    )


# ---- months ----------------------------------------------------------------------------------------------------------


async def test_a_reservation_repeated_after_the_months_end_stays_in_its_month(
    log_database: LogDatabase, log: PostgresEventStore
) -> None:
    job_id = new_id()
    async with a_replica(log_database, NOVEMBER) as before, a_replica(log_database, DECEMBER) as after:
        first = await before.reserve(a_reservation(job_id), an_envelope())
        again = await after.reserve(a_reservation(job_id), an_envelope())
    assert again.data == first.data == {"reserved_micro_usd": 10_000, "price_micro_usd_per_hour": PRICE}
    assert await accounts_of(log, job_id) == {account_stream("alice", "2026-11")}


async def test_two_replicas_on_either_side_of_midnight_reserve_a_job_once(
    log_database: LogDatabase, log: PostgresEventStore
) -> None:
    jobs = [new_id() for _ in range(10)]
    async with a_replica(log_database, NOVEMBER) as before, a_replica(log_database, DECEMBER) as after:
        for job_id in jobs:
            command = a_reservation(job_id)
            await asyncio.gather(before.reserve(command, an_envelope()), after.reserve(command, an_envelope()))
    for job_id in jobs:
        assert len([event for event in await story(log, job_id) if isinstance(event, FundsReserved)]) == 1


async def test_a_claim_whose_reservation_was_never_written_decides_the_month_of_the_retry(
    log_database: LogDatabase, log: PostgresEventStore
) -> None:
    job_id = new_id()
    november = account_stream("alice", "2026-11")
    async with asyncpg.create_pool(log_database.dsn("billing"), min_size=1, max_size=2) as pool:
        await pool.execute(QUERIES.claim_account, job_id, november, "2026-11")
    async with a_replica(log_database, DECEMBER) as after:
        await after.reserve(a_reservation(job_id), an_envelope())
    assert await accounts_of(log, job_id) == {november}


async def test_a_new_month_begins_with_the_whole_limit(log_database: LogDatabase) -> None:
    async with (
        a_replica(log_database, NOVEMBER, floor=-10_000) as before,
        a_replica(log_database, DECEMBER, floor=-10_000) as after,
    ):
        await before.reserve(a_reservation(new_id()), an_envelope())
        with pytest.raises(Rejected, match="funds_refused"):
            await before.reserve(a_reservation(new_id(), steps=1), an_envelope())
        await after.reserve(a_reservation(new_id()), an_envelope())


# ---- limits ----------------------------------------------------------------------------------------------------------


async def test_racing_reservations_fill_a_spending_limit_exactly(log_database: LogDatabase) -> None:
    """12 jobs of 0.01 USD race for a limit of 0.05 USD over two replicas: 5 are let in."""

    async def outcome(replica: Accounts, job_id: UUID) -> str:
        while True:
            try:
                await replica.reserve(a_reservation(job_id), an_envelope())
            except Rejected as refusal:
                if refusal.code == "version_conflict":
                    continue  # the scheduler's process repeats it too
                return refusal.code
            return "reserved"

    async with (
        a_replica(log_database, NOVEMBER, floor=-50_000) as one,
        a_replica(log_database, NOVEMBER, floor=-50_000) as two,
        asyncio.timeout(240),
    ):
        outcomes = await asyncio.gather(*(outcome((one, two)[number % 2], new_id()) for number in range(12)))
    assert sorted(outcomes) == ["funds_refused"] * 7 + ["reserved"] * 5


async def test_a_refusal_is_recorded_once_and_answered_the_same(
    log_database: LogDatabase, log: PostgresEventStore
) -> None:
    job_id = new_id()
    messages: set[str] = set()
    async with a_replica(log_database, NOVEMBER, floor=0) as replica:
        for _ in range(2):
            with pytest.raises(Rejected) as refusal:
                await replica.reserve(a_reservation(job_id), an_envelope())
            messages.add(refusal.value.detail)
    assert len(messages) == 1
    assert len([event for event in await story(log, job_id) if isinstance(event, FundsRefused)]) == 1


# ---- settlement ------------------------------------------------------------------------------------------------------


async def test_a_job_settled_before_its_usage_was_heard_of_is_charged_for_it(
    log_database: LogDatabase, log: PostgresEventStore, store_for: StoreFor
) -> None:
    """The scheduler's SettleJob may overtake the attempt's event on its way to billing's metering."""
    job_id = new_id()
    async with a_replica(log_database, NOVEMBER) as replica:
        await replica.reserve(a_reservation(job_id), an_envelope())
        await an_attempt(await store_for("provider_bridge"), job_id, succeeded(7))
        reply = await replica.settle(SettleJob(job_id=job_id), an_envelope())
        assert reply.data == {"captured_micro_usd": 7_000}
        assert (await replica.settle(SettleJob(job_id=job_id), an_envelope())).data == reply.data
    events = await story(log, job_id)
    assert [type(event) for event in events if isinstance(event, UsageMetered | FundsCaptured)] == [
        UsageMetered,
        FundsCaptured,
    ]


async def test_settling_a_job_that_never_reserved_anything_is_harmless(log_database: LogDatabase) -> None:
    async with a_replica(log_database, NOVEMBER) as replica:
        reply = await replica.settle(SettleJob(job_id=new_id()), an_envelope())
    assert reply.data == {"captured_micro_usd": 0}


# ---- the running service ---------------------------------------------------------------------------------------------


@pytest.fixture
async def send(service_settings: ServiceSettings, bus_server: EmbeddedNats) -> AsyncIterator[CommandSender]:
    """Sends to a running billing as the gateway does."""
    settings = load(Settings, service_settings("billing", billing_local_micro_usd_per_hour=PRICE))
    async with running_service("billing", settings, build), connected_bus(bus_server, "gateway") as bus:
        yield CommandSender(bus)


async def ask(sender: CommandSender, command: Command) -> CommandReply:
    return await sender.send("billing", command, correlation_id=uuid4())


async def test_an_ended_attempt_is_metered_by_itself_and_the_cost_of_the_job_can_be_read(
    send: CommandSender, store_for: StoreFor
) -> None:
    job_id = new_id()
    with pytest.raises(Rejected, match="not_found"):
        await ask(send, ReadJobCost(job_id=job_id))
    await ask(send, a_reservation(job_id, steps=20))
    bridge = await store_for("provider_bridge")
    await an_attempt(bridge, job_id, AttemptCancelled(ended_at=utc_now(), billed_seconds=4))
    await an_attempt(bridge, job_id, succeeded(5))

    async def cost() -> dict[str, object]:
        try:
            return (await ask(send, ReadJobCost(job_id=job_id))).data
        except Rejected:
            return {}

    async def is_metered() -> bool:
        return (await cost()).get("metered_micro_usd") == 9_000

    await eventually(is_metered)
    await ask(send, SettleJob(job_id=job_id))

    async def is_settled() -> bool:
        return (await cost()).get("released_micro_usd") == 91_000

    await eventually(is_settled)
    read = await cost()
    entries = msgspec.convert(read.pop("entries"), list[dict[str, object]])
    assert read == {
        "reserved_micro_usd": 100_000,
        "metered_micro_usd": 9_000,
        "captured_micro_usd": 9_000,
        "released_micro_usd": 91_000,
    }
    assert [(entry["type"], entry["ledger_account"], entry["amount_micro_usd"]) for entry in entries] == [
        ("reserved", "available", -100_000),
        ("reserved", "reserved", 100_000),
        ("captured", "reserved", -9_000),
        ("captured", "spent", 9_000),
        ("released", "reserved", -91_000),
        ("released", "available", 91_000),
    ]
    (rebuilt,) = (await ask(send, RebuildProjections())).data["projections"]
    assert rebuilt["equal"]


async def test_usage_of_a_job_without_a_reservation_is_parked_for_a_person_to_see(
    send: CommandSender, store_for: StoreFor
) -> None:
    await an_attempt(await store_for("provider_bridge"), new_id(), succeeded(5))

    async def is_parked() -> bool:
        parked = (await ask(send, ListParked())).data["parked"]
        return [entry["type"] for entry in parked] == ["attempt.succeeded.v1"]

    await eventually(is_parked)
