"""The scheduler and billing as they run, on a real log and a real bus, with peers for storage and the bridge."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats
from services.billing.app import build as build_billing
from services.billing.domain.pricing import Catalogue
from services.billing.handlers import Accounts
from services.billing.settings import Settings as BillingSettings
from services.scheduler.app import build as build_scheduler
from services.scheduler.domain.job_process import BILLING
from services.scheduler.domain.placement import Market
from services.scheduler.handlers import FIRST_PRICES_WITHIN, JobProcess
from services.scheduler.inbound.subscriptions import SHARES
from services.scheduler.settings import Settings as SchedulerSettings
from shared.clock import utc_now
from shared.contracts import catalogue
from shared.contracts.account import FundsCaptured, FundsReleased, FundsReserved
from shared.contracts.admin import ListParked, RebuildProjections, ReplayParked
from shared.contracts.artifact import ConfirmArtifacts, PackDatasets
from shared.contracts.attempt import CancelAttempt, RequestAttempt
from shared.contracts.envelope import CommandReply, EventMetadata
from shared.contracts.job import (
    CancelJob,
    Command,
    DatasetRequest,
    DeleteJob,
    Event,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobFundsReserved,
    JobQueued,
    JobStarted,
    ReadQueue,
    SubmitJob,
)
from shared.contracts.offers import Offer
from shared.contracts.provider import ProviderOffersPublished
from shared.contracts.subjects import BILLING_METERING
from shared.eventstore.api import Append
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.problems import Rejected, Unavailable
from shared.service import running_service
from shared.settings import load
from tests.integration.scheduler.peers import BridgePeer, StoragePeer, serving
from tests.support.bus import ServiceSettings, connected_bus
from tests.support.log import StoreFor
from tests.support.waiting import eventually

PRICE_MICRO_USD_PER_HOUR = 3_600_000
"""1000 micro-dollars a second."""
ENDS = (JobCompleted, JobFailed, JobCancelled)


@dataclass
class World:
    """Everything around a scheduler; `stack` ends it."""

    settings: ServiceSettings
    server: EmbeddedNats
    stack: AsyncExitStack
    storage: StoragePeer
    bridge: BridgePeer
    log: PostgresEventStore
    sender: CommandSender

    async def start_storage(self) -> None:
        await self.stack.enter_async_context(
            serving(self.server, "storage", {PackDatasets: self.storage.pack, ConfirmArtifacts: self.storage.confirm})
        )

    async def start_scheduler(self, **extra: object) -> None:
        settings = load(SchedulerSettings, self.settings("scheduler", **extra))
        await self.stack.enter_async_context(running_service("scheduler", settings, build_scheduler))

    async def start_billing(self, **extra: object) -> None:
        values = {"billing_local_micro_usd_per_hour": PRICE_MICRO_USD_PER_HOUR, **extra}
        settings = load(BillingSettings, self.settings("billing", **values))
        await self.stack.enter_async_context(running_service("billing", settings, build_billing))

    async def send(self, owner: str, command: Command) -> CommandReply:
        """Sends as the gateway does."""
        return await self.sender.send(owner, command, correlation_id=uuid4(), actor="user:alice")

    async def submit(
        self, *, user: str = "alice", datasets: bool = True, provider: str = "local", job_id: UUID | None = None
    ) -> UUID:
        job_id = job_id or new_id()
        wanted = [DatasetRequest(dataset_id="digits", path="/data/digits")] if datasets else []
        order = SubmitJob(
            job_id=job_id,
            user_id=user,
            provider=provider,
            config={"--max_train_steps": 20},
            dataloader=[],
            datasets=wanted,
        )
        reply = await self.send("scheduler", order)
        assert reply.data == {"job_id": str(job_id), "status": "uploading" if datasets else "pending"}
        assert (await self.send("scheduler", order)).data == reply.data
        return job_id

    async def events(self, job_id: UUID) -> list[Event]:
        """The whole story, of every category, in log order."""
        story = [catalogue.decode(recorded) for recorded in await self.log.read_correlated(job_id)]
        return [event for event in story if event is not None]

    async def attempt(self, job_id: UUID, number: int = 1) -> RequestAttempt:
        """The job's attempt of that number, once it is asked for."""

        async def asked() -> bool:
            return len(self.bridge.attempts_of(job_id)) >= number

        await eventually(asked)
        return self.bridge.attempts_of(job_id)[number - 1]

    async def sees(self, job_id: UUID, kind: type[Event]) -> None:
        """Returns when the story has an event of that kind."""

        async def there() -> bool:
            return any(isinstance(event, kind) for event in await self.events(job_id))

        await eventually(there)

    async def end_of(self, job_id: UUID) -> Event:
        """The job's terminal event, once the money is settled too."""

        async def settled() -> bool:
            story = await self.events(job_id)
            reserved = any(isinstance(event, FundsReserved) for event in story)
            captured = any(isinstance(event, FundsCaptured) for event in story)
            return captured == reserved and any(isinstance(event, ENDS) for event in story)

        await eventually(settled)
        (end,) = [event for event in await self.events(job_id) if isinstance(event, ENDS)]
        return end

    async def moved(self, job_id: UUID) -> tuple[int, int, int]:
        """(reserved, captured, released) micro-dollars of a job's story."""
        story = await self.events(job_id)
        kinds = (FundsReserved, FundsCaptured, FundsReleased)
        amounts = [[event.amount_micro_usd for event in story if isinstance(event, kind)] for kind in kinds]
        assert all(len(of_kind) <= 1 for of_kind in amounts)
        reserved, captured, released = (sum(of_kind) for of_kind in amounts)
        return reserved, captured, released


@pytest.fixture
async def world(
    service_settings: ServiceSettings, bus_server: EmbeddedNats, store_for: StoreFor
) -> AsyncIterator[World]:
    storage = StoragePeer(await store_for("storage"))
    bridge = BridgePeer(await store_for("provider_bridge"))
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connected_bus(bus_server, "gateway"))
        await stack.enter_async_context(
            serving(bus_server, "provider_bridge", {RequestAttempt: bridge.request, CancelAttempt: bridge.cancel})
        )
        yield World(
            service_settings, bus_server, stack, storage, bridge, await store_for("gateway"), CommandSender(bus)
        )


@pytest.fixture
async def running(world: World) -> World:
    await world.start_storage()
    await world.start_billing()
    await world.start_scheduler()
    return world


async def test_a_job_goes_from_submit_to_delivered_and_is_charged_for_its_seconds(running: World) -> None:
    job_id = await running.submit()
    attempt = await running.attempt(job_id)
    assert [dataset.dataset_id for dataset in attempt.datasets] == ["digits"]
    assert attempt.price_micro_usd_per_hour == PRICE_MICRO_USD_PER_HOUR
    await running.bridge.starts(attempt)
    await running.bridge.succeeds(attempt, seconds=7)
    end = await running.end_of(job_id)
    assert isinstance(end, JobCompleted)
    assert end.delivery == "delivered"
    # 60 s to begin with and 2 s for each of 20 steps were reserved
    assert await running.moved(job_id) == (100_000, 7_000, 93_000)


async def test_a_preempted_job_runs_again_from_its_checkpoint_and_pays_for_both_runs(running: World) -> None:
    job_id = await running.submit(datasets=False)
    first = await running.attempt(job_id)
    await running.bridge.starts(first)
    await running.bridge.saves_checkpoint(first, 10)
    await running.bridge.fails(first, "preempted", seconds=5)
    second = await running.attempt(job_id, 2)
    assert (second.attempt_number, second.resume and second.resume.step) == (2, 10)
    await running.bridge.starts(second)
    await running.bridge.succeeds(second, seconds=6)
    assert isinstance(await running.end_of(job_id), JobCompleted)
    assert (await running.moved(job_id))[1] == 11_000


async def test_a_job_whose_model_did_not_arrive_whole_is_completed_and_says_what_is_missing(running: World) -> None:
    running.storage.missing = ["lora.safetensors"]
    job_id = await running.submit()
    attempt = await running.attempt(job_id)
    await running.bridge.succeeds(attempt)
    end = await running.end_of(job_id)
    assert isinstance(end, JobCompleted)
    assert (end.delivery, end.missing) == ("incomplete", ["lora.safetensors"])


async def test_a_running_job_is_cancelled_when_its_machine_is_confirmed_gone(running: World) -> None:
    job_id = await running.submit()
    attempt = await running.attempt(job_id)
    await running.bridge.starts(attempt)
    await running.sees(job_id, JobStarted)
    assert (await running.send("scheduler", CancelJob(job_id=job_id))).data == {"phase": "cancelling"}

    async def asked() -> bool:
        return running.bridge.cancelled == [attempt.attempt_id]

    await eventually(asked)
    assert not any(isinstance(event, ENDS) for event in await running.events(job_id))
    await running.bridge.is_gone(attempt, seconds=3)
    assert isinstance(await running.end_of(job_id), JobCancelled)
    assert await running.moved(job_id) == (100_000, 3_000, 97_000)
    assert (await running.send("scheduler", CancelJob(job_id=job_id))).data == {"phase": "cancelled"}
    await running.send("scheduler", DeleteJob(job_id=job_id))


async def test_a_refused_dataset_fails_the_job_and_gives_its_funds_back(running: World) -> None:
    running.storage.refusal = "there is no picture in it"
    job_id = await running.submit()
    end = await running.end_of(job_id)
    assert isinstance(end, JobFailed)
    assert (end.kind, end.message) == ("dataset_refused", "digits: there is no picture in it")
    assert await running.moved(job_id) == (100_000, 0, 100_000)


async def test_a_job_beyond_the_spending_limit_fails_before_anything_is_packed(world: World) -> None:
    await world.start_storage()
    await world.start_billing(billing_default_floor_micro_usd=-99_999)
    await world.start_scheduler()
    job_id = await world.submit()
    end = await world.end_of(job_id)
    assert isinstance(end, JobFailed)
    assert end.kind == "funds_refused"
    assert end.message == "The estimate of 0.10 USD is more than the 0.099999 USD left this month."
    assert world.storage.packed == []


async def test_a_refused_start_fails_the_job_without_another_try(running: World) -> None:
    running.bridge.refusal = "that model is not known here"
    job_id = await running.submit()
    end = await running.end_of(job_id)
    assert isinstance(end, JobFailed)
    assert end.kind == "start_refused"
    assert "that model is not known here" in end.message


async def test_without_billing_a_job_is_held_and_goes_on_when_billing_is_back(world: World) -> None:
    """R15: never silently accepted."""
    await world.start_storage()
    await world.start_scheduler()
    job_id = await world.submit(datasets=False)
    with pytest.raises(Unavailable):
        await world.send("billing", RebuildProjections())
    assert not any(isinstance(event, JobQueued) for event in await world.events(job_id))
    await world.start_billing()
    attempt = await world.attempt(job_id)
    await world.bridge.succeeds(attempt)
    assert isinstance(await world.end_of(job_id), JobCompleted)


async def test_while_storage_is_away_another_job_runs_and_its_cancel_reaches_the_bridge(world: World) -> None:
    await world.start_billing()
    await world.start_scheduler()
    held = await world.submit()
    await world.sees(held, JobFundsReserved)
    job_id = await world.submit(user="bob", datasets=False)
    attempt = await world.attempt(job_id)
    await world.bridge.starts(attempt)
    await world.sees(job_id, JobStarted)
    await world.send("scheduler", CancelJob(job_id=job_id))

    async def asked() -> bool:
        return world.bridge.cancelled == [attempt.attempt_id]

    await eventually(asked)
    await world.bridge.is_gone(attempt, seconds=3)
    assert isinstance(await world.end_of(job_id), JobCancelled)
    assert not any(isinstance(event, JobQueued) for event in await world.events(held))
    await world.start_storage()
    await world.bridge.succeeds(await world.attempt(held))
    assert isinstance(await world.end_of(held), JobCompleted)


async def test_an_owners_bug_is_parked_and_the_next_job_goes_on(running: World) -> None:
    hurt = new_id()
    running.storage.broken.add(hurt)
    await running.submit(job_id=hurt)
    await running.sees(hurt, JobFundsReserved)
    await running.attempt(await running.submit(user="bob"))
    listed: list[Any] = []

    async def is_parked() -> bool:
        """The owner is asked for several jobs at the same time: the other one may be quicker than all tries of this."""
        listed[:] = (await running.send("scheduler", ListParked())).data["parked"]
        return bool(listed)

    await eventually(is_parked)
    (parked,) = listed
    assert (parked["durable"], parked["type"]) == ("scheduler__ask_storage", "job.funds_reserved.v1")
    assert "internal_error" in parked["reason"]
    assert not any(isinstance(event, ENDS) for event in await running.events(hurt))
    running.storage.broken.clear()
    again = ReplayParked(durable=parked["durable"], position=parked["position"])
    assert (await running.send("scheduler", again)).data["replayed"]
    await running.bridge.succeeds(await running.attempt(hurt))
    assert isinstance(await running.end_of(hurt), JobCompleted)


async def test_an_unknown_provider_is_refused_at_submit(running: World) -> None:
    with pytest.raises(Rejected) as refusal:
        await running.submit(provider="moon")
    assert refusal.value.code == "unknown_provider"


async def test_a_job_that_is_faster_than_its_providers_first_prices_is_paid_for_when_they_come(
    running: World, store_for: StoreFor
) -> None:
    job_id = await running.submit(provider="runpod", datasets=False)
    offer = Offer(
        provider="runpod", hardware="4090", gpu="RTX 4090", gpu_count=1, vram_gb=24, price_micro_usd_per_hour=690_000
    )
    published = ProviderOffersPublished(provider="runpod", offers=[offer], published_at=utc_now())
    bridge = await store_for("provider_bridge")
    meta = EventMetadata(actor="system:provider_bridge")
    stream = f"provider-{uuid4()}"
    await bridge.append(
        Append(stream=stream, expected_version=0, events=[published], meta=meta, correlation_id=uuid4())
    )
    await running.sees(job_id, FundsReserved)
    (reserved,) = [event for event in await running.events(job_id) if isinstance(event, FundsReserved)]
    assert reserved.price_micro_usd_per_hour == 690_000


async def test_a_job_whose_provider_names_no_price_in_time_is_refused_its_funds(
    running: World, bus_server: EmbeddedNats, store_for: StoreFor
) -> None:
    job_id = await running.submit(provider="runpod", datasets=False)
    (submitted,) = await running.log.read_correlated(job_id)
    async with connected_bus(bus_server, "scheduler") as bus:
        store, sender = await store_for("scheduler"), CommandSender(bus)
        with pytest.raises(Unavailable, match="has not said yet"):
            await JobProcess(store, sender, lambda: submitted.recorded_at, _no_market).react(submitted, BILLING)
        too_late = submitted.recorded_at + FIRST_PRICES_WITHIN
        await JobProcess(store, sender, lambda: too_late, _no_market).react(submitted, BILLING)
    await running.sees(job_id, JobFailed)
    (failed,) = [event for event in await running.events(job_id) if isinstance(event, JobFailed)]
    assert failed.kind == "funds_refused"
    assert "No price is known for provider runpod" in failed.message


async def test_the_third_job_of_a_user_waits_for_a_slot_and_gets_it(running: World) -> None:
    jobs = [await running.submit(datasets=False) for _ in range(3)]
    first = await running.attempt(jobs[0])
    await running.attempt(jobs[1])

    async def third_waits() -> bool:
        waiting = (await running.send("scheduler", ReadQueue())).data["waiting"]
        return [(entry["job_id"], entry["reason"]) for entry in waiting] == [(str(jobs[2]), "user_limit")]

    await eventually(third_waits)
    await running.bridge.succeeds(first)
    await running.attempt(jobs[2])


async def test_two_schedulers_and_two_billings_drive_each_job_once(running: World) -> None:
    await running.start_billing()
    await running.start_scheduler()
    jobs = [await running.submit(user=f"user-{number}") for number in range(5)]
    for job_id in jobs:
        attempt = await running.attempt(job_id)
        await running.bridge.succeeds(attempt, seconds=2)
    for job_id in jobs:
        assert isinstance(await running.end_of(job_id), JobCompleted)
        assert await running.moved(job_id) == (100_000, 2_000, 98_000)
        assert len(running.bridge.attempts_of(job_id)) == 1


async def test_refolded_read_models_are_byte_equal_after_a_whole_life(running: World) -> None:
    job_id = await running.submit()
    await running.bridge.succeeds(await running.attempt(job_id))
    await running.end_of(job_id)
    for owner in ("scheduler", "billing"):
        for rebuilt in (await running.send(owner, RebuildProjections())).data["projections"]:
            assert rebuilt["equal"], rebuilt


async def test_every_event_of_two_lives_delivered_again_adds_nothing(
    running: World, bus_server: EmbeddedNats, store_for: StoreFor
) -> None:
    """R4: the whole history once more through the job process and the metering, in order and backwards."""
    completed = await running.submit()
    first = await running.attempt(completed)
    await running.bridge.starts(first)
    await running.bridge.saves_checkpoint(first, 10)
    await running.bridge.fails(first, "preempted")
    await running.bridge.succeeds(await running.attempt(completed, 2))
    await running.end_of(completed)
    cancelled = await running.submit(datasets=False)
    stopped = await running.attempt(cancelled)
    await running.send("scheduler", CancelJob(job_id=cancelled))
    await running.bridge.is_gone(stopped)
    await running.end_of(cancelled)
    history = await running.log.read()
    async with connected_bus(bus_server, "scheduler") as bus, AsyncExitStack() as stack:
        process = JobProcess(await store_for("scheduler"), CommandSender(bus), utc_now, _no_market)
        pool = await stack.enter_async_context(asyncpg.create_pool(running.settings("billing")["DATABASE_URL"]))
        accounts = Accounts(pool, await store_for("billing"), utc_now, Catalogue(offers=()), None)
        for recorded in [*history, *reversed(history)]:
            for durable, owner in SHARES.items():
                if recorded.category in durable.categories:
                    await process.react(recorded, owner)
            if recorded.category in BILLING_METERING.categories:
                await accounts.react(recorded)
    assert await running.log.head() == len(history)


async def _no_market() -> Market:
    """Every job here says where it runs."""
    return Market()
