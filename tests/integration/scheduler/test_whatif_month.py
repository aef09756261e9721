"""A month in a real log: what-if takes every decision again, the past queue is the queue that was.

`WHATIF_MONTH_JOBS=10000` (`just whatif-month`) makes it the whole month; 300 jobs otherwise.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import cache
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from deploy.embedded.nats import EmbeddedNats
from services.billing.domain.pricing import Catalogue, Offer, cost_micro_usd
from services.billing.statements import Statements
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain.queue_past import fold_queue, told
from services.scheduler.history import PastQueues, Simulator
from shared.clock import utc_now
from shared.contracts.account import ReadAccount
from shared.contracts.attempt import AttemptCancelled, AttemptFailed, AttemptSucceeded
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.job import JobDispatched, JobSubmitted, JobWaitExplained, ReadQueue
from shared.contracts.whatif import (
    Policy,
    PolicyLimits,
    PriceList,
    PriceOffer,
    PriceUsage,
    SimulatePolicy,
    WhatIfReport,
)
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.verify import verify
from shared.messaging.commands import CommandSender
from shared.problems import Rejected, Unavailable
from tests.integration.scheduler.peers import serving
from tests.support import bulk_log
from tests.support.bulk_log import PastEvent
from tests.support.bus import connected_bus
from tests.support.log import LogDatabase, StoreFor
from tests.support.month import PRICE, Shape, a_month

JOBS = int(os.environ.get("WHATIF_MONTH_JOBS", "300"))
SHAPE = Shape(jobs=JOBS, days=30 * JOBS / 10_000)
MAX_S = 60.0
ENDS = AttemptSucceeded | AttemptFailed | AttemptCancelled

pytestmark = pytest.mark.timeout(600)


class Past:
    """A month in a log of its own, and who answers about it."""

    def __init__(
        self, events: list[PastEvent], database: LogDatabase, simulator: Simulator, queues: PastQueues
    ) -> None:
        self.events = events
        self.database = database
        self.simulator = simulator
        self.queues = queues

    async def what_if(self, **asked: object) -> WhatIfReport:
        command = msgspec.convert(asked, SimulatePolicy)
        return msgspec.convert((await self.simulator.simulate(command, an_envelope())).data, WhatIfReport)

    async def queue(self, position: int) -> dict[str, list[dict[str, object]]]:
        return (await self.queues.read_queue(ReadQueue(up_to_position=position), an_envelope())).data


def an_envelope() -> CommandEnvelope:
    return CommandEnvelope(command_id=uuid4(), correlation_id=uuid4(), payload=msgspec.Raw(b"{}"))


def an_offer(price: int, provider: str = "local") -> PriceOffer:
    return PriceOffer(provider=provider, price_micro_usd_per_hour=price)


@cache
def the_month() -> list[PastEvent]:
    """The same month for every test: making it takes longer than writing it."""
    return a_month(1, SHAPE)


@pytest.fixture
async def past(log_database: LogDatabase, store_for: StoreFor, bus_server: EmbeddedNats) -> AsyncIterator[Past]:
    began = time.monotonic()
    events = the_month()
    made_s = time.monotonic() - began
    written = await bulk_log.write(log_database.superuser_dsn, events)
    print(f"{JOBS} jobs, {len(events)} events: made in {made_s:.1f} s, written in {written.duration_s:.1f} s")  # noqa: T201 - the recipe shows it
    prices = Catalogue(offers=(msgspec.convert(msgspec.to_builtins(an_offer(PRICE)), Offer),))
    statements = Statements(await store_for("billing"), utc_now, prices)
    async with (
        asyncpg.create_pool(log_database.dsn("scheduler"), min_size=1, max_size=3) as pool,
        serving(bus_server, "billing", {PriceUsage: statements.price_usage}),
        connected_bus(bus_server, "scheduler") as bus,
    ):
        store = PostgresEventStore(pool)
        dispatcher = Dispatcher(pool, store, utc_now, SHAPE.limits)
        simulator = Simulator(store, CommandSender(bus), SHAPE.limits)
        yield Past(events, log_database, simulator, PastQueues(pool, dispatcher.read_queue))
        await store.close()


async def test_the_unchanged_policy_reproduces_every_decision_of_the_month(past: Past) -> None:
    """Within a minute for 10 000 jobs; meanwhile the process answers others."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.monotonic() - before)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    report = await past.what_if()
    watching.cancel()
    decisions = report.decisions
    print(f"decisions: {decisions.recorded} reproduced: {decisions.reproduced} in {report.duration_s} s")  # noqa: T201
    print(f"longest wait of others in the process: {longest_s * 1000:.0f} ms")  # noqa: T201
    assert decisions.first_difference is None
    written = sum(isinstance(one.event, JobDispatched | JobWaitExplained) for one in past.events)
    assert decisions.recorded == decisions.reproduced == written + decisions.retries
    assert decisions.retries > 0
    assert report.what_if == report.happened
    assert report.duration_s < MAX_S
    assert report.happened.jobs == JOBS
    charged = [cost_micro_usd(one.event.billed_seconds, PRICE) for one in past.events if isinstance(one.event, ENDS)]
    assert report.happened.cost_micro_usd == sum(charged)
    assert (await verify(past.database.dsn("inspector"))).is_intact


async def test_other_limits_and_prices_are_told_beside_what_happened(past: Past) -> None:
    wide = Policy(limits=PolicyLimits(in_all=10_000, per_user=10_000))
    prices = PriceList(offers=[an_offer(2 * PRICE)])
    report = await past.what_if(policy=wide, prices=prices, jobs_limit=5, jobs_offset=2)
    assert report.decisions.first_difference is not None
    assert report.what_if.wait.median_s == 0
    assert report.what_if.wait.mean_s < report.happened.wait.mean_s
    assert report.what_if.cost_micro_usd == pytest.approx(2 * report.happened.cost_micro_usd, rel=0.02)
    assert len(report.jobs) == 5
    only_prices = await past.what_if(prices=prices)
    assert only_prices.decisions.reproduced == only_prices.decisions.recorded
    assert only_prices.what_if.cost_micro_usd == pytest.approx(2 * only_prices.happened.cost_micro_usd, abs=2 * JOBS)


async def test_questions_that_cannot_be_answered_are_refused_by_name(past: Past) -> None:
    """A provider without a price, a window that ends before it begins, a second question at the same time."""
    with pytest.raises(Rejected, match="provider local") as refused:
        await past.what_if(prices=PriceList(offers=[an_offer(1, "elsewhere")]))
    assert (refused.value.code, refused.value.fields["field"]) == ("validation_error", "prices")
    first = asyncio.create_task(past.what_if())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await past.what_if()
    assert (await first).decisions.first_difference is None
    with pytest.raises(Rejected):
        await past.what_if(after_position=10, up_to_position=10)


async def test_the_queue_of_then_is_the_fold_of_everything_up_to_then(past: Past) -> None:
    """And a reason is shown from the event that recorded it on."""
    total = len(past.events)
    for position in {1, total // 7, total // 3, total // 2, total - total // 5, total}:
        events = [
            (one.correlation_id, one.event, place)
            for place, one in enumerate(past.events[:position], start=1)
            if one.stream.startswith("job-")
        ]
        expected = told(fold_queue(events))
        seen = await past.queue(position)
        assert seen["running"] == expected["running"]
        assert seen["waiting"] == expected["waiting"]
        assert len(seen["running"]) <= SHAPE.limits.in_all
    place, explained = next(
        (place, one) for place, one in enumerate(past.events, start=1) if isinstance(one.event, JobWaitExplained)
    )
    assert isinstance(explained.event, JobWaitExplained)
    (then,) = [job for job in (await past.queue(place))["waiting"] if job["job_id"] == str(explained.correlation_id)]
    assert (then["reason"], then["detail"]) == (explained.event.reason, explained.event.detail)
    (before,) = [
        job for job in (await past.queue(place - 1))["waiting"] if job["job_id"] == str(explained.correlation_id)
    ]
    assert before["reason"] == "undecided"


async def test_an_account_of_then_sums_to_zero_and_knows_only_what_had_happened(
    past: Past, store_for: StoreFor
) -> None:
    statements = Statements(await store_for("billing"), utc_now, Catalogue(offers=()))
    owner, month = "user-01", "2026-10"
    before: dict[str, int] = {"jobs": 0, "spent": 0}
    for position in (len(past.events) // 4, len(past.events) // 2, len(past.events)):
        command = ReadAccount(owner=owner, month=month, up_to_position=position, limit=10_000)
        data = (await statements.read_account(command, an_envelope())).data
        assert data["sum_micro_usd"] == sum(data["balances"].values()) == 0
        jobs = data["jobs"]
        assert data["jobs_total"] == len(jobs) >= before["jobs"]
        assert data["balances"]["spent"] == sum(job["captured_micro_usd"] for job in jobs) >= before["spent"]
        held = sum(job["reserved_micro_usd"] for job in jobs if job["state"] == "held")
        assert data["balances"]["reserved"] == held
        before = {"jobs": len(jobs), "spent": data["balances"]["spent"]}
    submitted = {one.correlation_id for one in past.events if isinstance(one.event, JobSubmitted)}
    assert len(submitted) == JOBS
    with pytest.raises(Rejected) as refused:
        await statements.read_account(ReadAccount(owner="nobody", month=month), an_envelope())
    assert refused.value.code == "not_found"
