"""The provider-bridge put together: the only file that names concrete parts."""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from services.provider_bridge.domain.provider_settings import COMMON_NAMES, read_settings
from services.provider_bridge.driving import Driver, DrivingOptions
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.inbound.reconciler import Pace, Reconciler
from services.provider_bridge.inbound.subscriptions import commands, provider_commands, subscription, worker_commands
from services.provider_bridge.inbound.worker_watch import WatchPace, WorkerOffers, WorkerWatch
from services.provider_bridge.live_runs import LiveRuns
from services.provider_bridge.outbound.credential_key import find_key
from services.provider_bridge.outbound.credentials import Credentials
from services.provider_bridge.outbound.directory import (
    VARIABLE_PREFIX,
    ConfiguredProviders,
    FixedProviders,
    Surroundings,
    read_variables,
)
from services.provider_bridge.outbound.guarded import GuardedProvider
from services.provider_bridge.outbound.leases import Leases
from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.network import read_network
from services.provider_bridge.outbound.ports import Provider, Providers
from services.provider_bridge.outbound.secret_sources import secret_chain
from services.provider_bridge.outbound.vendors.catalogue import KINDS
from services.provider_bridge.outbound.worker_store import WorkerStore
from services.provider_bridge.outbound.workers import WorkersProvider
from services.provider_bridge.projections.attempts import ATTEMPTS
from services.provider_bridge.provider_handlers import ProviderHandlers
from services.provider_bridge.provider_stream import ProviderStreams
from services.provider_bridge.quoting import Quoter
from services.provider_bridge.settings import Settings, inherited_environment
from services.provider_bridge.sweeping import Sweeper
from services.provider_bridge.webhook_handlers import WebhookHandlers
from services.provider_bridge.worker_handlers import WorkerHandlers
from shared.contracts.subjects import PROVIDER_CHANGES
from shared.messaging.connection import Bus
from shared.service import Runtime, ServiceParts
from shared.settings import SettingsError
from shared.slots import Slot

_RENEWALS_PER_LEASE = 3
_INSTALLATION_DIGITS = 8


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Commands, the read model and the reconciler's three loops."""
    options = _local_options(settings)
    local = LocalProvider(options)
    slot = Slot.claim(options.state_dir / "owners")  # held until this process ends, however it ends
    environ = inherited_environment()
    key = find_key(environ, options.state_dir)
    workers = WorkerStore(runtime.pool, runtime.store, runtime.clock, key)
    credentials = Credentials(runtime.pool, key)
    own_workers = WorkersProvider(workers)
    providers = await _configured(runtime, [local, own_workers], credentials, environ)
    driving = DrivingOptions(
        gateway_url=settings.bridge_gateway_url.rstrip("/"),
        public_url=settings.public_url,
        cancel_grace_s=settings.bridge_cancel_grace_s,
        longest_run_s=settings.bridge_longest_run_s,
        report_grace_s=settings.bridge_report_grace_s,
    )
    parts = assemble(runtime, settings, providers, f"{local.site}/{slot.number}", driving, workers)
    streams = ProviderStreams(runtime.store)
    interval_s = settings.bridge_quote_interval_s
    quoter = Quoter(providers, streams, runtime.clock, interval_s=interval_s, limit_s=providers.run_limit_s)
    of_workers = Quoter(FixedProviders([own_workers]), streams, runtime.clock, interval_s=interval_s)
    worker_offers = WorkerOffers(of_workers.round)
    workers.changed = worker_offers.changed
    about = provider_commands(
        ProviderHandlers(
            streams,
            providers,
            credentials,
            runtime.clock,
            KINDS,
            quote=quoter.ask,
            live=LiveRuns(runtime.pool, runtime.store),
        ),
        WebhookHandlers(runtime.store, runtime.pool, streams, providers, runtime.clock),
    )
    return msgspec.structs.replace(
        parts,
        commands={**parts.commands, **about},
        loops=[
            *parts.loops,
            providers.run,
            quoter.run,
            worker_offers.run,
            partial(_hear_of_changes, runtime.bus, providers),
        ],
    )


async def _configured(
    runtime: Runtime, built_in: list[Provider], credentials: Credentials, environ: Mapping[str, str]
) -> ConfiguredProviders:
    """The providers as they are set up now. Raises SettingsError for what the environment says wrongly."""
    network = read_network(environ)
    variables, unknown = read_variables(KINDS, COMMON_NAMES, environ)
    faults = [f"{name}: there is no such provider or setting" for name in unknown]
    for kind in KINDS:
        wrong = read_settings(kind.settings, {}, variables.get(kind.name, {}))[1]
        faults += [f"{VARIABLE_PREFIX}{kind.name}_{each.field}".upper() + f": {each.message}" for each in wrong]
    if faults:
        raise SettingsError("\n".join(faults))
    streams = ProviderStreams(runtime.store)
    providers = ConfiguredProviders(
        built_in,
        KINDS,
        streams=streams,
        wrap=lambda provider: GuardedProvider(provider, streams, runtime.clock),
        credentials=credentials,
        chain=secret_chain(environ, network),
        surroundings=Surroundings(
            network=network,
            variables=variables,
            installation=(await runtime.store.store_id()).hex[-_INSTALLATION_DIGITS:],
            clock=runtime.clock,
        ),
    )
    await providers.refresh()
    return providers


async def _hear_of_changes(bus: Bus, providers: ConfiguredProviders, stop: asyncio.Event) -> None:
    """What another replica was told, this one looks at too; a hint that is lost costs REFRESH_S."""

    async def heard(_message: Msg) -> None:
        providers.wake()

    for subject in PROVIDER_CHANGES:
        await bus.client.subscribe(subject, cb=heard)  # pyright: ignore[reportUnknownMemberType] - nats-py's Future
    await stop.wait()


def assemble(
    runtime: Runtime,
    settings: Settings,
    providers: Providers,
    owner: str,
    driving: DrivingOptions,
    workers: WorkerStore | None = None,
) -> ServiceParts:
    """The bridge on these providers, whatever they are; with the workers' side too if there is a store of them."""
    leases = Leases(runtime.pool, runtime.store, runtime.clock, owner=owner, lease_s=settings.bridge_lease_s)
    reconciler = _reconciler(runtime, settings, leases, providers, driving)
    handlers = AttemptHandlers(runtime.store, providers, runtime.clock, reconciler.nudge)
    parts = ServiceParts(
        commands=commands(handlers),
        subscriptions=[subscription(reconciler.nudge)],
        projections=[ATTEMPTS],
        loops=[reconciler.drive, reconciler.renew, reconciler.sweep],
    )
    if workers is not None:
        watch = WorkerWatch(workers, reconciler.nudge, WatchPace(lost_s=settings.bridge_worker_lost_s))
        parts.commands = {**parts.commands, **worker_commands(WorkerHandlers(workers, reconciler.nudge))}
        parts.loops = [*parts.loops, watch.run]
    return parts


def _local_options(settings: Settings) -> LocalOptions:
    state_dir = Path(settings.bridge_state_dir).absolute()
    trainer_dir = Path(settings.bridge_trainer_dir).absolute()
    if (trainer_dir / "__main__.py").is_file():  # the package itself was named; it runs from the folder above
        trainer_dir = trainer_dir.parent
    return LocalOptions(
        state_dir=state_dir,
        trainer_python=trainer_dir / settings.bridge_trainer_python,  # an absolute path stays what it is
        trainer_dir=trainer_dir,
        environ=inherited_environment(),
        log_limit_bytes=settings.bridge_log_limit_bytes,
    )


def _reconciler(
    runtime: Runtime, settings: Settings, leases: Leases, providers: Providers, driving: DrivingOptions
) -> Reconciler:
    sweeper = Sweeper(
        leases,
        runtime.store,
        providers,
        runtime.clock,
        cancel_grace_s=settings.bridge_cancel_grace_s,
    )
    return Reconciler(
        Driver(leases, providers, runtime.clock, driving),
        leases,
        sweeper,
        sites=[site for provider in providers.known() if (site := provider.capabilities.site)],
        pace=Pace(
            interval_s=settings.bridge_reconcile_interval_s,
            renew_s=settings.bridge_lease_s / _RENEWALS_PER_LEASE,
            sweep_s=settings.bridge_sweep_interval_s,
        ),
    )
