"""A job's story as recorded events, said in as few words as a test needs."""

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec

from shared.contracts import catalogue
from shared.contracts.account import FundsCaptured, FundsReserved, Posting, UsageMetered
from shared.contracts.artifact import ArtifactStored, DatasetsPacked
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCheckpointSaved,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
    Quote,
)
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.job import (
    Checkpoint,
    DatasetRequest,
    Event,
    JobCheckpointed,
    JobCompleted,
    JobDatasetsPacked,
    JobDispatched,
    JobFundsReserved,
    JobQueued,
    JobStarted,
    JobSubmitted,
    JobTrainingFinished,
    JobWaitExplained,
    PackedDataset,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PRICE = 3_600_000
"""1000 micro-dollars a second."""
TOKEN = "an attempt's token"


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


class StoryTeller:
    """Records events of one job as the log would: positions and stream versions count up."""

    def __init__(self, job_id: UUID | None = None) -> None:
        self.job_id = job_id or uuid4()
        self.attempt_id = uuid4()
        self.account = f"account-{uuid4()}"
        self.events: list[RecordedEvent] = []
        self._versions: dict[str, int] = {self.account: 40}  # an account's stream holds other jobs' events too

    def tell(self, stream: str, *events: Event) -> "StoryTeller":
        """Adds events to a stream."""
        for event in events:
            self._versions[stream] = self._versions.get(stream, 0) + 1
            self.events.append(
                RecordedEvent(
                    global_position=len(self.events) + 1,
                    event_id=uuid4(),
                    stream=stream,
                    stream_version=self._versions[stream],
                    type=catalogue.event_type(type(event)),
                    data=msgspec.Raw(catalogue.encode(event)),
                    meta=EventMetadata(),
                    correlation_id=self.job_id,
                    recorded_at=at(len(self.events)),
                    hash=b"",
                )
            )
        return self

    def job(self, *events: Event) -> "StoryTeller":
        """Adds to the job's stream."""
        return self.tell(f"job-{self.job_id}", *events)

    def attempt(self, *events: Event) -> "StoryTeller":
        """Adds to the present attempt's stream."""
        return self.tell(f"attempt-{self.attempt_id}", *events)

    def submitted(self, **changes: object) -> "StoryTeller":
        """The job is accepted, with one dataset."""
        order = JobSubmitted(
            user_id="local",
            provider="local",
            priority=10,
            config={"--lora_rank": 16},
            dataloader=[],
            datasets=[DatasetRequest(dataset_id="a", path="/a")],
            config_name=None,
            tracker_run_name="run",
            idempotency_key=None,
            account="local",
            submitted_at=NOON,
        )
        return self.job(msgspec.structs.replace(order, **changes))

    def queued(self) -> "StoryTeller":
        """Data and funds are there; the job waits, and says for whom."""
        packed = [PackedDataset(dataset_id="a", sha256="f" * 64, size_bytes=3, file_count=1)]
        self.tell(f"dataset-{self.job_id}", DatasetsPacked(job_id=self.job_id, datasets=packed, packed_at=at(1)))
        self.job(JobDatasetsPacked(datasets=packed))
        reserved = FundsReserved(
            job_id=self.job_id,
            amount_micro_usd=5_000_000,
            price_micro_usd_per_hour=PRICE,
            postings=[Posting(ledger_account="reserved", amount_micro_usd=0)],
            reserved_at=at(2),
        )
        self.tell(self.account, reserved)
        self.job(JobFundsReserved(reserved_micro_usd=5_000_000, price_micro_usd_per_hour=PRICE))
        self.job(JobQueued(queued_at=at(3), reason="first_time"))
        return self.job(JobWaitExplained(reason="user_limit", detail="2 of 2 run", limit=2, holders=["x"]))

    def running(self, number: int = 1) -> "StoryTeller":
        """An attempt was dispatched and its trainer said hello at 12:00:10."""
        if number > 1:
            self.attempt_id = uuid4()
        dispatched = JobDispatched(
            attempt_id=self.attempt_id,
            attempt_number=number,
            provider="local",
            resume=None,
            reason="first in the queue",
            dispatched_at=at(5),
        )
        self.job(dispatched)
        requested = AttemptRequested(
            job_id=self.job_id,
            attempt_number=number,
            provider="local",
            quote=Quote(hardware="cpu", price_micro_usd_per_hour=PRICE),
            config={},
            dataloader=[],
            datasets=[],
            resume=None,
            requested_at=at(5),
        )
        self.attempt(
            requested,
            AttemptStartIntended(epoch=1, token_sha256=digest_of(TOKEN), intended_at=at(6)),
            AttemptAccepted(epoch=1, provider_ref="p-1", accepted_at=at(7)),
            AttemptStarted(started_at=at(10), device="cpu"),
        )
        return self.job(JobStarted(attempt_id=self.attempt_id, started_at=at(10)))

    def checkpointed(self, step: int) -> "StoryTeller":
        """A checkpoint is stored."""
        checkpoint = Checkpoint(step=step, files=[])
        self.attempt(AttemptCheckpointSaved(checkpoint=checkpoint, saved_at=at(12)))
        return self.job(JobCheckpointed(attempt_id=self.attempt_id, checkpoint=checkpoint))

    def stored(self, key: str, size_bytes: int = 7) -> "StoryTeller":
        """An object of the job is stored."""
        object_key = f"{self.job_id}/{key}"
        event = ArtifactStored(
            job_id=self.job_id,
            attempt_id=self.attempt_id,
            bucket="outputs",
            object_key=object_key,
            name=key.rpartition("/")[2],
            size_bytes=size_bytes,
            sha256="0" * 64,
            content_type="application/octet-stream",
            stored_at=at(13),
        )
        return self.tell(f"artifact-{key.replace('/', '_')}", event)

    def completed(self) -> "StoryTeller":
        """Trained, metered, captured; the trainer was on for 20 seconds."""
        self.attempt(
            AttemptSucceeded(steps=10, final_loss=0.5, artifacts=[], undelivered=[], ended_at=at(30), billed_seconds=20)
        )
        self.job(
            JobTrainingFinished(
                attempt_id=self.attempt_id, steps=10, final_loss=0.5, artifacts=[], undelivered=[], finished_at=at(30)
            )
        )
        self.job(JobCompleted(completed_at=at(31), delivery="delivered", missing=[]))
        metered = UsageMetered(
            job_id=self.job_id,
            attempt_id=self.attempt_id,
            seconds=20,
            price_micro_usd_per_hour=PRICE,
            amount_micro_usd=20_000,
            metered_at=at(32),
        )
        captured = FundsCaptured(job_id=self.job_id, amount_micro_usd=20_000, postings=[], captured_at=at(33))
        return self.tell(self.account, metered, captured)


def digest_of(token: str) -> str:
    """What the log keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
