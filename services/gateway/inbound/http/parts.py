"""What routes are given: built once in app.py, handed out by Litestar's dependency injection."""

from dataclasses import dataclass

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from services.gateway.access import AttemptAccess
from services.gateway.administration import Services
from services.gateway.handlers import JobCommands, Principal
from services.gateway.inbound.feed import Feed
from services.gateway.inbound.log_stream import LogStreams
from services.gateway.inbound.worker_stream import WorkerStreams
from services.gateway.intake import ReportIntake
from services.gateway.outbound.object_store import ObjectStore
from services.gateway.outbound.webhook_probe import IpNetwork, WebhookProbe
from services.gateway.past import Past
from services.gateway.providers import ProviderDesk
from services.gateway.reads import JobReads
from services.gateway.workers import WorkerCommands


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayParts:
    """Everything a route may call."""

    commands: JobCommands
    reads: JobReads
    past: Past
    access: AttemptAccess
    intake: ReportIntake
    objects: ObjectStore
    services: Services
    feed: Feed
    log_streams: LogStreams
    workers: WorkerCommands
    worker_streams: WorkerStreams
    max_object_bytes: int
    providers: ProviderDesk
    probe: WebhookProbe
    public_url: str | None
    """Where the rest of the world reaches this gateway, None if it does not."""
    trusted_proxies: tuple[IpNetwork, ...]
    """Peers whose X-Forwarded-For is believed."""


Parts = NamedDependency[SkipValidation[GatewayParts]]
Caller = NamedDependency[SkipValidation[Principal]]
