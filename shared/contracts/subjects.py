"""Every NATS subject, JetStream stream, durable and permission is made here, and nowhere else."""

from uuid import UUID

import msgspec

EVENTS_STREAM = "EVENTS"
TELEMETRY_STREAM = "TELEMETRY"
FRONT_BUSY = "front.busy"
"""Published without a body by the gateway while many commands wait; heard by all others. Never stored."""
SERVICES = ("storage", "billing", "provider_bridge", "scheduler", "gateway")
"""Start order; stopping goes the other way round."""


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A JetStream stream as the relay creates it. Both may be wiped at any time."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int
    duplicate_window_s: float


class Durable(msgspec.Struct, frozen=True, kw_only=True):
    """One service's ordered reading of some categories: a projection or a process manager."""

    service: str
    purpose: str
    categories: tuple[str, ...]

    @property
    def name(self) -> str:
        """`gateway__jobs_view`."""
        return f"{self.service}__{self.purpose}"

    @property
    def filter_subjects(self) -> list[str]:
        """One `evt.job.>` for each category."""
        return [f"evt.{category}.>" for category in self.categories]


STREAMS = (
    StreamSpec(
        name=EVENTS_STREAM,
        subjects=("evt.>",),
        max_age_s=0,
        max_bytes=8 * 1024**3,
        duplicate_window_s=600,
    ),
    StreamSpec(
        name=TELEMETRY_STREAM,
        subjects=("tel.>",),
        max_age_s=3600,
        max_bytes=1024**3,
        duplicate_window_s=120,
    ),
)

GATEWAY_JOBS_VIEW = Durable(
    service="gateway", purpose="jobs_view", categories=("job", "attempt", "dataset", "artifact", "account")
)
SCHEDULER_JOB_PROCESS = Durable(
    service="scheduler", purpose="job_process", categories=("attempt", "dataset", "account")
)
"""What happened elsewhere is kept on the job: this waits for no other service."""

SCHEDULER_ASK_STORAGE = Durable(service="scheduler", purpose="ask_storage", categories=("job",))
SCHEDULER_ASK_BILLING = Durable(service="scheduler", purpose="ask_billing", categories=("job",))
SCHEDULER_ASK_BRIDGE = Durable(service="scheduler", purpose="ask_bridge", categories=("job",))
"""One durable for each owner that is asked: while it is away, only what needs it waits."""

SCHEDULER_QUEUE = Durable(service="scheduler", purpose="queue", categories=("job",))
"""Read straight from the log inside the dispatch transaction: it has a checkpoint, but no JetStream consumer."""

SCHEDULER_MARKET = Durable(service="scheduler", purpose="market", categories=("attempt", "provider"))
BRIDGE_ATTEMPTS = Durable(service="provider_bridge", purpose="attempts", categories=("attempt",))
STORAGE_OBJECTS = Durable(service="storage", purpose="objects", categories=("artifact", "dataset"))
BILLING_LEDGER = Durable(service="billing", purpose="ledger", categories=("account",))
BILLING_METERING = Durable(service="billing", purpose="metering", categories=("attempt", "job", "provider"))
DURABLES = (
    GATEWAY_JOBS_VIEW,
    SCHEDULER_JOB_PROCESS,
    SCHEDULER_ASK_STORAGE,
    SCHEDULER_ASK_BILLING,
    SCHEDULER_ASK_BRIDGE,
    SCHEDULER_MARKET,
    BRIDGE_ATTEMPTS,
    STORAGE_OBJECTS,
    BILLING_LEDGER,
    BILLING_METERING,
)


def event_subject(type_: str, stream: str) -> str:
    """`job.submitted.v1` on `job-<id>` -> `evt.job.submitted.<id>`."""
    category, name, _version = type_.split(".")
    return f"evt.{category}.{name}.{stream.partition('-')[2]}"


def command_subject(owner: str, tag: str) -> str:
    """`cmd.scheduler.submit_job`; the owner's replicas share the queue group named like the owner."""
    return f"cmd.{owner}.{tag}"


def telemetry_subject(job_id: UUID, type_: str) -> str:
    """`tel.<job id>.metrics`: published by storage after the lines are committed; a wake-up, not the record."""
    return f"tel.{job_id}.{type_}"


class BusPermissions(msgspec.Struct, frozen=True, kw_only=True):
    """What one NATS user may do; nothing else is allowed."""

    user: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    allow_responses: bool


_CALLS: dict[str, tuple[str, ...]] = {
    "gateway": ("scheduler", "storage", "billing", "provider_bridge", "gateway"),
    "scheduler": ("storage", "billing", "provider_bridge"),
    "provider_bridge": ("storage",),
    "storage": (),
    "billing": (),
}
"""Service -> the owners it sends commands to; the gateway asks every service, itself included, for admin answers."""

_EXTRA_PUBLISH: dict[str, tuple[str, ...]] = {"storage": ("tel.>",), "gateway": (FRONT_BUSY,)}
PROVIDER_CHANGES = (
    "evt.provider.configured.>",
    "evt.provider.credential_stored.>",
    "evt.provider.credential_removed.>",
)
"""What every replica of the bridge hears, as a hint to look into the log; the durables of a service wake only one."""

_EXTRA_SUBSCRIBE: dict[str, tuple[str, ...]] = {"gateway": ("evt.>", "tel.>"), "provider_bridge": PROVIDER_CHANGES}


def inbox_prefix(service: str) -> str:
    """Replies of one service arrive where no other may listen."""
    return f"_INBOX_{service}"


def service_permissions(service: str) -> BusPermissions:
    """Send to the owners it calls, answer its own commands, pull from its own durables, and ask itself if it lives."""
    publish = [*(f"cmd.{owner}.>" for owner in _CALLS[service]), command_subject(service, "ping")]
    for durable in DURABLES:
        if durable.service == service:
            tail = f"{EVENTS_STREAM}.{durable.name}"
            publish += [f"$JS.API.CONSUMER.MSG.NEXT.{tail}", f"$JS.API.CONSUMER.INFO.{tail}", f"$JS.ACK.{tail}.>"]
    return BusPermissions(
        user=service,
        publish=(*publish, *_EXTRA_PUBLISH.get(service, ())),
        subscribe=(f"{inbox_prefix(service)}.>", f"cmd.{service}.>", FRONT_BUSY, *_EXTRA_SUBSCRIBE.get(service, ())),
        allow_responses=True,
    )


def relay_permissions() -> BusPermissions:
    """The relay alone publishes events and keeps streams and durables as this file says."""
    return BusPermissions(
        user="relay",
        publish=("evt.>", "$JS.API.>"),
        subscribe=(f"{inbox_prefix('relay')}.>", "$JS.EVENT.ADVISORY.>", FRONT_BUSY),
        allow_responses=False,
    )


def all_permissions() -> list[BusPermissions]:
    """One entry per NATS user."""
    return [relay_permissions(), *(service_permissions(service) for service in SERVICES)]
