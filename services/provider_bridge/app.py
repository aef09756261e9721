"""The provider-bridge put together: the only file that names concrete parts."""

from pathlib import Path

from services.provider_bridge.driving import Driver, DrivingOptions
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.inbound.reconciler import Pace, Reconciler
from services.provider_bridge.inbound.subscriptions import commands, subscription, worker_commands
from services.provider_bridge.inbound.worker_watch import WatchPace, WorkerWatch
from services.provider_bridge.outbound.credential_key import find_key
from services.provider_bridge.outbound.directory import FixedProviders
from services.provider_bridge.outbound.leases import Leases
from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.owner import OwnerName
from services.provider_bridge.outbound.ports import Providers
from services.provider_bridge.outbound.worker_store import WorkerStore
from services.provider_bridge.outbound.workers import WorkersProvider
from services.provider_bridge.projections.attempts import ATTEMPTS
from services.provider_bridge.settings import Settings, inherited_environment
from services.provider_bridge.sweeping import Sweeper
from services.provider_bridge.worker_handlers import WorkerHandlers
from shared.service import Runtime, ServiceParts

_RENEWALS_PER_LEASE = 3


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Commands, the read model and the reconciler's three loops."""
    options = _local_options(settings)
    local = LocalProvider(options)
    owner = OwnerName.claim(options.state_dir, local.site)  # held until this process ends, however it ends
    driving = DrivingOptions(
        gateway_url=settings.bridge_gateway_url.rstrip("/"),
        public_url=settings.public_url,
        cancel_grace_s=settings.bridge_cancel_grace_s,
        report_grace_s=settings.bridge_report_grace_s,
    )
    key = find_key(inherited_environment(), options.state_dir)
    workers = WorkerStore(runtime.pool, runtime.store, runtime.clock, key)
    providers = FixedProviders([local, WorkersProvider(workers)])
    return assemble(runtime, settings, providers, owner.name, driving, workers)


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
