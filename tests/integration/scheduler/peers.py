"""The owners that a scheduler talks to, as small peers of the contract: they answer on the real bus, under their own
NATS user, and append their facts to the real log under their own role. What they do next is up to the test.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

from deploy.embedded.nats import EmbeddedNats
from shared.clock import utc_now
from shared.contracts.artifact import ConfirmArtifacts, DatasetsPacked, DatasetsRefused, PackDatasets
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptCheckpointSaved,
    AttemptFailed,
    AttemptRequested,
    AttemptStarted,
    AttemptSucceeded,
    CancelAttempt,
    Quote,
    RequestAttempt,
)
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata
from shared.contracts.job import Checkpoint, Command, Event, PackedDataset
from shared.eventstore.api import Append
from shared.eventstore.postgres import PostgresEventStore
from shared.messaging.commands import CommandHandler, CommandServer
from shared.problems import Rejected
from tests.support.bus import connected_bus


async def append(store: PostgresEventStore, stream: str, job_id: UUID, event: Event) -> None:
    """Adds a fact at the end of a stream."""
    version = len(await store.read_stream(stream))
    await store.append(
        Append(stream=stream, expected_version=version, events=[event], meta=EventMetadata(), correlation_id=job_id)
    )


class StoragePeer:
    """Packs at once whatever it is asked to; refuses it when `refusal` is set; misses the artifacts in `missing`.

    It meets a bug when it packs for a job in `broken`.
    """

    def __init__(self, store: PostgresEventStore) -> None:
        self._store = store
        self.refusal: str | None = None
        self.missing: list[str] = []
        self.packed: list[UUID] = []
        self.broken: set[UUID] = set()

    async def pack(self, command: PackDatasets, _envelope: CommandEnvelope) -> CommandReply:
        if command.job_id in self.broken:
            raise ZeroDivisionError
        stream = f"dataset-{command.job_id}"
        self.packed.append(command.job_id)
        if not await self._store.read_stream(stream):
            await append(self._store, stream, command.job_id, self._result(command))
        return CommandReply()

    def _result(self, command: PackDatasets) -> Event:
        if self.refusal is not None:
            name = command.datasets[0].dataset_id
            return DatasetsRefused(
                job_id=command.job_id, dataset_id=name, message=self.refusal, advice="add one", refused_at=utc_now()
            )
        packed = [
            PackedDataset(dataset_id=wanted.dataset_id, sha256="ab" * 32, size_bytes=1, file_count=1)
            for wanted in command.datasets
        ]
        return DatasetsPacked(job_id=command.job_id, datasets=packed, packed_at=utc_now())

    async def confirm(self, _command: ConfirmArtifacts, _envelope: CommandEnvelope) -> CommandReply:
        return CommandReply(data={"missing": self.missing})


class BridgePeer:
    """Takes on every attempt it is asked for; what its machine does is told by the test."""

    def __init__(self, store: PostgresEventStore) -> None:
        self._store = store
        self.refusal: str | None = None
        self.requests: dict[UUID, RequestAttempt] = {}
        self.cancelled: list[UUID] = []

    async def request(self, command: RequestAttempt, _envelope: CommandEnvelope) -> CommandReply:
        if self.refusal is not None:
            raise Rejected("invalid_config", self.refusal)
        if command.attempt_id not in self.requests:
            requested = AttemptRequested(
                job_id=command.job_id,
                attempt_number=command.attempt_number,
                provider=command.provider,
                quote=Quote(hardware="cpu", price_micro_usd_per_hour=command.price_micro_usd_per_hour),
                config=command.config,
                dataloader=command.dataloader,
                datasets=command.datasets,
                resume=command.resume,
                requested_at=utc_now(),
            )
            await append(self._store, f"attempt-{command.attempt_id}", command.job_id, requested)
            self.requests[command.attempt_id] = command
        return CommandReply()

    async def cancel(self, command: CancelAttempt, _envelope: CommandEnvelope) -> CommandReply:
        self.cancelled.append(command.attempt_id)
        return CommandReply()

    def attempts_of(self, job_id: UUID) -> list[RequestAttempt]:
        """What was asked for, in that order."""
        return [request for request in self.requests.values() if request.job_id == job_id]

    async def tell(self, request: RequestAttempt, event: Event) -> None:
        """Something happened to the attempt."""
        await append(self._store, f"attempt-{request.attempt_id}", request.job_id, event)

    async def starts(self, request: RequestAttempt) -> None:
        await self.tell(request, AttemptStarted(started_at=utc_now(), device="cpu"))

    async def saves_checkpoint(self, request: RequestAttempt, step: int) -> None:
        saved = Checkpoint(step=step, files=[])
        await self.tell(request, AttemptCheckpointSaved(checkpoint=saved, saved_at=utc_now()))

    async def succeeds(self, request: RequestAttempt, seconds: int = 10) -> None:
        event = AttemptSucceeded(
            steps=30, final_loss=0.1, artifacts=[], undelivered=[], ended_at=utc_now(), billed_seconds=seconds
        )
        await self.tell(request, event)

    async def fails(self, request: RequestAttempt, kind: str, seconds: int = 10) -> None:
        event = AttemptFailed(
            kind=kind, message=f"it was {kind}", advice=None, exit_code=1, ended_at=utc_now(), billed_seconds=seconds
        )
        await self.tell(request, event)

    async def is_gone(self, request: RequestAttempt, seconds: int = 10) -> None:
        await self.tell(request, AttemptCancelled(ended_at=utc_now(), billed_seconds=seconds))


@asynccontextmanager
async def serving(
    server: EmbeddedNats, owner: str, handlers: dict[type[Command], CommandHandler]
) -> AsyncGenerator[None]:
    """The handlers answer under their owner's NATS user inside the block."""
    stop, ready = asyncio.Event(), asyncio.Event()
    async with connected_bus(server, owner) as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(CommandServer(bus, owner, handlers).run(stop, ready=ready))
        await ready.wait()
        try:
            yield
        finally:
            stop.set()
