"""Each service built as its own `app.py` builds it, on the simulated database, bus and provider."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from nats.aio.client import Client

from services.billing.domain.pricing import Catalogue, Offer
from services.billing.handlers import Accounts
from services.billing.inbound import subscriptions as billing
from services.provider_bridge import app as bridge
from services.provider_bridge.driving import DrivingOptions
from services.provider_bridge.outbound.directory import FixedProviders
from services.provider_bridge.settings import Settings as BridgeSettings
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain.placement import Market
from services.scheduler.domain.queue_policy import Limits
from services.scheduler.handlers import JobHandlers, JobProcess
from services.scheduler.inbound import subscriptions as scheduler
from services.scheduler.inbound.timers import DispatchLoop
from services.scheduler.projections import market
from services.storage.handlers import Storage
from services.storage.outbound.dataset_files import UnusableDataset
from services.storage.outbound.objects import Objects
from services.storage.packing import Packing, PackLimits
from services.storage.projections import objects as objects_projection
from shared.contracts.artifact import ConfirmArtifacts, PackDatasets, ReadReports, RecordReports
from shared.contracts.job import PackedDataset
from shared.contracts.subjects import SCHEDULER_MARKET, STORAGE_OBJECTS
from shared.messaging.consumer import Pace, Subscription
from shared.messaging.handling import Retries
from shared.service import Runtime, ServiceParts
from shared.settings import Secret
from tests.sim.gateway import build_gateway
from tests.sim.process import Process
from tests.sim.provider import Cloud, SimProvider

PACE = Pace(poll_s=4.0, tick_s=8.0, takeover_s=2.0, retries=Retries(first_pause_s=0.2))
LEASE_S = 6.0
_SAFETY_S = 3.0
_SWEEP_S = 12.0
_RECONCILE_S = 1.0
_PACK_LEASE_S = 9.0


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed decides about the installation."""

    limits: Limits
    price_micro_usd_per_hour: int
    floor_micro_usd: int | None
    replicas: dict[str, int]


class Blobs:
    """The object store: contents by address. A put is whole or not there."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    async def size(self, where: str) -> int | None:
        """The size of what is there."""
        return self.sizes.get(where)


class World(msgspec.Struct, kw_only=True):
    """What all processes share."""

    setup: Setup
    cloud: Cloud
    blobs: Blobs


def build(service: str, runtime: Runtime, process: Process, world: World) -> ServiceParts:
    """The service's parts; what answers requests from outside goes to `process.parts`."""
    builders: dict[str, Callable[[Runtime, Process, World], ServiceParts]] = {
        "scheduler": _scheduler,
        "provider_bridge": _bridge,
        "storage": _storage,
        "billing": _billing,
        "gateway": _gateway,
    }
    return builders[service](runtime, process, world)


def _scheduler(runtime: Runtime, _process: Process, world: World) -> ServiceParts:
    dispatcher = Dispatcher(runtime.pool, runtime.store, runtime.clock, world.setup.limits)
    jobs = JobHandlers(runtime.store, runtime.clock, ("local",))
    job_process = JobProcess(runtime.store, runtime.sender, runtime.clock, _no_market)
    loop = DispatchLoop(dispatcher, runtime.store, runtime.clock, safety_s=_SAFETY_S)
    return ServiceParts(
        commands=scheduler.commands(jobs, dispatcher),
        subscriptions=[
            *scheduler.subscriptions(job_process),
            Subscription(durable=SCHEDULER_MARKET, project=market.project),
        ],
        loops=[loop.run],
    )


def _bridge(runtime: Runtime, process: Process, world: World) -> ServiceParts:
    provider = SimProvider(world.cloud, process)
    settings = BridgeSettings(
        database_url=Secret(""),
        nats_url="",
        nats_user="",
        nats_password=Secret(""),
        bridge_gateway_url="",
        bridge_state_dir="",
        bridge_lease_s=LEASE_S,
        bridge_reconcile_interval_s=_RECONCILE_S,
        bridge_sweep_interval_s=_SWEEP_S,
        bridge_cancel_grace_s=1.0,
        bridge_report_grace_s=3.0,
    )
    driving = DrivingOptions(
        gateway_url="",
        cancel_grace_s=settings.bridge_cancel_grace_s,
        report_grace_s=settings.bridge_report_grace_s,
        new_token=lambda: process.chaos.new_id().hex,
    )
    owner = process.name.partition(".")[0]  # its successor gets the name again, as from the lock file
    return bridge.assemble(runtime, settings, FixedProviders([provider]), owner, driving)


async def _no_market() -> Market:
    """Nobody rents machines here: every job says where it runs."""
    return Market()


def _billing(runtime: Runtime, _process: Process, world: World) -> ServiceParts:
    offer = Offer(
        provider="local",
        hardware="simulated",
        price_micro_usd_per_hour=world.setup.price_micro_usd_per_hour,
        base_seconds=10,
        seconds_per_step=2,
        seconds_without_steps=60,
    )
    floor = world.setup.floor_micro_usd
    accounts = Accounts(runtime.pool, runtime.store, runtime.clock, Catalogue(offers=(offer,)), floor)
    return ServiceParts(commands=billing.commands(accounts), subscriptions=billing.subscriptions(accounts))


def _storage(runtime: Runtime, process: Process, world: World) -> ServiceParts:
    limits = PackLimits(roots=[Path("/")], private=[], max_dataset_bytes=1, parallelism=1, lease_s=_PACK_LEASE_S)

    async def pack(folder: str) -> PackedDataset:
        if await process.step("pack:folder", ("disk full",)) is not None:
            raise OSError("no room")
        await asyncio.sleep(process.chaos.between(0.1, 12.0))
        if "unusable" in folder:
            raise UnusableDataset(f"{folder} holds nothing", "Put images into it.")
        digest = hashlib.sha256(folder.encode()).hexdigest()
        return PackedDataset(dataset_id="", sha256=digest, size_bytes=512, file_count=1)

    packing = Packing(runtime.pool, runtime.store, pack, runtime.clock, limits)
    objects = cast("Objects", cast("Any", world.blobs))  # as far as commands use it
    client = cast("Client", cast("Any", runtime.bus.client))
    storage = Storage(runtime.pool, runtime.store, objects, packing, client, runtime.clock)
    process.parts = storage
    return ServiceParts(
        commands={
            PackDatasets: storage.pack_datasets,
            ConfirmArtifacts: storage.confirm_artifacts,
            RecordReports: storage.record_reports,
            ReadReports: storage.read_reports,
        },
        subscriptions=[Subscription(durable=STORAGE_OBJECTS, project=objects_projection.project)],
        loops=[packing.run],
    )


def _gateway(runtime: Runtime, process: Process, _world: World) -> ServiceParts:
    return build_gateway(runtime, process)
