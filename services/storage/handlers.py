"""One short function per command, and the one way an object becomes a fact."""

from uuid import UUID

import asyncpg
import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from services.storage.domain import artifact, dataset
from services.storage.domain.object_key import check_object_key
from services.storage.domain.reports import accept
from services.storage.outbound import reports
from services.storage.outbound.objects import Objects, address
from services.storage.packing import DECIDER as DATASET_DECIDER
from services.storage.packing import Packing
from shared.clock import Clock
from shared.contracts import subjects
from shared.contracts.artifact import ArtifactStored, ConfirmArtifacts, PackDatasets, ReadReports, RecordReports
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata
from shared.contracts.job import ArtifactRef
from shared.decider import Decider, execute, fold
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage
from shared.ids import derived_id

ARTIFACT_DECIDER = Decider(initial=artifact.INITIAL, evolve=artifact.evolve, decide=artifact.decide)

log = structlog.stdlib.get_logger()


def artifact_stream(bucket: str, object_key: str) -> str:
    """The stream of one object key; the same key always gives the same stream."""
    return f"artifact-{derived_id(bucket, object_key)}"


class Storage:
    """What storage can do, over its log, its objects and its tables."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        store: EventStore,
        objects: Objects,
        packing: Packing,
        nats_client: Client,
        clock: Clock,
    ) -> None:
        self.pool = pool
        self.objects = objects
        self.clock = clock
        self._store = store
        self._packing = packing
        self._nats_client = nats_client

    async def pack_datasets(self, command: PackDatasets, envelope: CommandEnvelope) -> CommandReply:
        """Takes the work in; the result follows as an event. A repeat after the result starts nothing."""
        state = fold(DATASET_DECIDER, await self._store.read_stream(dataset.stream_of(command.job_id)))
        if state.result is None:
            with unavailable_on_outage("pack_datasets"):
                await self._packing.accept(command, envelope)
        return CommandReply(data={"accepted": True, "done": state.result is not None})

    async def confirm_artifacts(self, command: ConfirmArtifacts, _envelope: CommandEnvelope) -> CommandReply:
        """Names what is not stored with the digest it should have."""
        missing = [ref.name for ref in command.artifacts if not await self._is_stored(command.job_id, ref)]
        return CommandReply(data={"missing": missing})

    async def record_reports(self, command: RecordReports, _envelope: CommandEnvelope) -> CommandReply:
        """Commits the lines, then wakes whoever follows the job."""
        lines = accept(command)
        with unavailable_on_outage("record_reports"):
            recorded = await reports.record(self.pool, command.job_id, command.attempt_id, lines, self.clock())
        await self._wake_readers(command.job_id, recorded.last_cursors)
        return CommandReply(data={"ack": recorded.ack})

    async def read_reports(self, command: ReadReports, _envelope: CommandEnvelope) -> CommandReply:
        """One page of a job's report lines."""
        with unavailable_on_outage("read_reports"):
            page = await reports.read(
                self.pool,
                command.job_id,
                after=command.after,
                types=command.types,
                limit=command.limit,
                tail=command.tail,
            )
        lines = [msgspec.Raw(line) for line in page.lines]
        return CommandReply(data={"lines": lines, "cursors": page.cursors, "cursor": page.cursor})

    async def find_object(self, bucket: str, object_key: str) -> ArtifactStored | None:
        """What a key names now, from its stream: true from the moment its upload was answered."""
        stream = artifact_stream(bucket, check_object_key(object_key))
        return fold(ARTIFACT_DECIDER, await self._store.read_stream(stream)).current

    async def store_artifact(self, stored: ArtifactStored) -> None:
        """Records that a key names a content that is already in the object store."""
        actor = f"attempt:{stored.attempt_id}" if stored.attempt_id else "system:storage"
        await execute(
            self._store,
            ARTIFACT_DECIDER,
            artifact_stream(stored.bucket, stored.object_key),
            stored,
            meta=EventMetadata(actor=actor),
            correlation_id=stored.job_id,
        )

    async def _is_stored(self, job_id: UUID, ref: ArtifactRef) -> bool:
        found = await self.find_object(artifact.OUTPUTS, ref.object_key)
        if found is None or found.job_id != job_id or found.sha256 != ref.sha256.lower():
            return False
        return await self.objects.size(address(artifact.OUTPUTS, found.sha256)) == found.size_bytes

    async def _wake_readers(self, job_id: UUID, last_cursors: dict[str, int]) -> None:
        try:
            for type_, cursor in last_cursors.items():
                payload = msgspec.json.encode({"cursor": cursor})
                await self._nats_client.publish(subjects.telemetry_subject(job_id, type_), payload)
        except nats.errors.Error as error:
            log.warning("storage.readers.not_woken", job_id=str(job_id), error=repr(error))
