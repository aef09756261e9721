"""Composition: the one place where the gateway's parts are named and joined."""

import asyncio
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from services.gateway.access import AttemptAccess
from services.gateway.administration import Services
from services.gateway.handlers import JobCommands
from services.gateway.inbound.feed import Feed
from services.gateway.inbound.http.app import make_app
from services.gateway.inbound.http.edge import HostRule
from services.gateway.inbound.http.parts import GatewayParts
from services.gateway.inbound.http.server import bind, serve
from services.gateway.inbound.log_stream import LogStreams
from services.gateway.inbound.subscriptions import PROJECTIONS, SUBSCRIPTIONS
from services.gateway.inbound.wakeups import Wakeups
from services.gateway.inbound.worker_stream import WorkerStreams
from services.gateway.intake import ReportIntake
from services.gateway.outbound.config_files import ConfigFiles
from services.gateway.outbound.idempotency import IdempotencyKeys
from services.gateway.outbound.object_store import ObjectStore
from services.gateway.outbound.webhook_probe import IpNetwork, WebhookProbe, networks_of
from services.gateway.past import Past
from services.gateway.projections.jobs import JobsView
from services.gateway.providers import ProviderDesk
from services.gateway.reads import JobReads
from services.gateway.settings import Settings
from services.gateway.workers import WorkerCommands
from shared.messaging.right_of_way import Claims
from shared.problems import Unavailable
from shared.service import Runtime, ServiceParts
from shared.settings import SettingsError

FORGET_EVERY_S = 3600.0

log = structlog.stdlib.get_logger()


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """The gateway's parts; the port is bound here, so that a taken one fails the start."""
    keys = IdempotencyKeys(runtime.pool)
    wakeups = Wakeups(runtime.bus)
    parts = _parts(runtime, settings, keys, wakeups)
    hosts = HostRule.of(settings.gateway_host, [*settings.gateway_allowed_hosts.split(","), *_public_hosts(settings)])
    app = make_app(parts, _version(), hosts)
    bound = bind(settings.gateway_host, settings.gateway_port)

    async def serve_http(stop: asyncio.Event) -> None:
        await serve(app, bound, stop, drain_s=settings.gateway_drain_s)
        await parts.objects.close()

    return ServiceParts(
        subscriptions=SUBSCRIPTIONS,
        projections=PROJECTIONS,
        loops=(wakeups.run, parts.feed.run, serve_http, partial(_forget_claims, runtime, keys)),
    )


def _parts(runtime: Runtime, settings: Settings, keys: IdempotencyKeys, wakeups: Wakeups) -> GatewayParts:
    jobs = JobsView(runtime.pool)
    reads = JobReads(runtime, jobs)
    desk = ProviderDesk(runtime.sender, reads)
    access = AttemptAccess(runtime.store, jobs, reads)
    commands = JobCommands(
        sender=runtime.sender,
        reads=reads,
        keys=keys,
        configs=ConfigFiles(Path(settings.gateway_config_dir)),
        clock=runtime.clock,
        providers=tuple(name.strip() for name in settings.gateway_providers.split(",") if name.strip()),
        claims=Claims(runtime.bus.client.publish),
        require_configured=desk.require_configured,
    )
    workers = WorkerCommands(runtime.sender)
    return GatewayParts(
        commands=commands,
        reads=reads,
        past=Past(runtime.store, runtime.sender, runtime.clock),
        access=access,
        intake=ReportIntake(runtime.sender, access),
        objects=ObjectStore(settings.gateway_storage_url, settings.gateway_storage_token),
        services=Services(runtime, jobs, _version()),
        feed=Feed(
            runtime.store,
            reads,
            wakeups,
            max_streams=settings.gateway_event_streams,
            max_per_ip=settings.gateway_event_streams_per_ip,
        ),
        workers=workers,
        worker_streams=WorkerStreams(workers, wakeups, runtime.stop, max_streams=settings.gateway_worker_streams),
        log_streams=LogStreams(reads, wakeups, runtime.stop, max_streams=settings.gateway_log_streams),
        max_object_bytes=settings.gateway_max_object_bytes,
        providers=desk,
        probe=WebhookProbe(_networks("TUNEWRIGHT_PRIVATE_NETWORKS", settings.tunewright_private_networks)),
        public_url=settings.public_url,
        trusted_proxies=_networks("GATEWAY_TRUSTED_PROXIES", settings.gateway_trusted_proxies),
    )


def _public_hosts(settings: Settings) -> list[str]:
    """The authority of the public URL: providers and trainers name it when they call."""
    url = urlsplit(settings.public_url or "")
    if url.scheme not in {"", "http", "https"} or (settings.public_url and not url.hostname):
        raise SettingsError("TUNEWRIGHT_PUBLIC_URL: it must be an origin such as https://tuning.example.com")
    return [name for name in (url.hostname, url.netloc) if name]


def _networks(name: str, text: str) -> tuple[IpNetwork, ...]:
    try:
        return networks_of(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


async def _forget_claims(runtime: Runtime, keys: IdempotencyKeys, stop: asyncio.Event) -> None:
    """Removes idempotency claims that have run out, every hour."""
    while not stop.is_set():
        try:
            await keys.forget_expired(runtime.clock())
        except Unavailable as away:
            log.warning("gateway.claims.kept", detail=away.detail)
        try:
            async with asyncio.timeout(FORGET_EVERY_S):
                await stop.wait()
        except TimeoutError:
            continue


def _version() -> str:
    try:
        return package_version("tunewright")
    except PackageNotFoundError:  # run from the source tree
        return "0.1.0"
