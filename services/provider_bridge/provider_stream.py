"""A provider as a stream of the log: its name, its decider, and the commands that the bridge itself gives it."""

from uuid import UUID

from services.provider_bridge.attempt_stream import ACTOR
from services.provider_bridge.domain.provider import ProviderCommand, ProviderState, decide, evolve
from shared.contracts.envelope import EventMetadata
from shared.decider import Decider, Decision
from shared.eventstore.api import EventStore
from shared.ids import derived_id
from shared.known_streams import KnownStreams

PROVIDER: Decider[ProviderState, ProviderCommand] = Decider(initial=ProviderState(), evolve=evolve, decide=decide)


def provider_stream(name: str) -> str:
    """The stream that a provider's events stand on."""
    return f"provider-{provider_id(name)}"


def provider_id(name: str) -> UUID:
    """The id in the stream's name, and the correlation of what belongs to no job."""
    return derived_id("provider", name)


class ProviderStreams:
    """What the log knows of each provider, by its name."""

    def __init__(self, store: EventStore) -> None:
        self._streams = KnownStreams(store, PROVIDER)

    async def load(self, name: str) -> ProviderState:
        """The provider as the log has it now."""
        return await self._streams.load(provider_stream(name))

    async def execute(
        self, name: str, command: ProviderCommand, *, meta: EventMetadata | None = None, job_id: UUID | None = None
    ) -> Decision[ProviderState]:
        """Decides and appends; what concerns a job stands in that job's story too."""
        return await self._streams.execute(
            provider_stream(name),
            command,
            meta=meta or EventMetadata(actor=ACTOR),
            correlation_id=job_id or provider_id(name),
        )
