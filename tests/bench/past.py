"""A long past to read: job lives of ten events each, many at a time, as they lie in a real log."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.contracts.job import (
    Checkpoint,
    CheckpointFile,
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
    PackedDataset,
)
from shared.ids import new_id
from tests.support.bulk_log import PastEvent

EVENTS_PER_JOB = 10
AT_ONCE = 200
"""So many jobs live side by side: neighbours in the log are of different streams."""
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_SHA = "a5" * 32
_CONFIG = {
    "--model_type": "lora",
    "--model_family": "flux",
    "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "--max_train_steps": "1000",
    "--learning_rate": "1e-4",
    "--train_batch_size": "1",
    "--checkpointing_steps": "250",
    "--resolution": "1024",
}
_LOADER = [{"id": "pictures", "instance_data_dir": "/data/pictures", "resolution": 1024}]


def job_lives(jobs: int) -> Iterator[PastEvent]:
    """Completed jobs, ten events each."""
    for first in range(0, jobs, AT_ONCE):
        at = _BEGAN + timedelta(seconds=first)
        lives = [(new_id(), _life(at)) for _ in range(min(AT_ONCE, jobs - first))]
        for step in range(EVENTS_PER_JOB):
            for job_id, life in lives:
                yield _past(job_id, life[step], at)


def _past(job_id: UUID, event: Event, at: datetime) -> PastEvent:
    return PastEvent(stream=f"job-{job_id}", event=event, correlation_id=job_id, recorded_at=at)


def _life(at: datetime) -> list[Event]:
    attempt_id = new_id()
    return [
        JobSubmitted(
            user_id="user-1",
            provider="local",
            priority=10,
            config=_CONFIG,
            dataloader=_LOADER,
            datasets=[DatasetRequest(dataset_id="pictures", path="/data/pictures")],
            config_name="flux-lora",
            tracker_run_name=None,
            idempotency_key=None,
            account="user-1",
            submitted_at=at,
        ),
        JobDatasetsPacked(
            datasets=[PackedDataset(dataset_id="pictures", sha256=_SHA, size_bytes=52_428_800, file_count=100)]
        ),
        JobFundsReserved(reserved_micro_usd=1_200_000, price_micro_usd_per_hour=1_200_000),
        JobQueued(queued_at=at, reason="first_time"),
        JobDispatched(
            attempt_id=attempt_id,
            attempt_number=1,
            provider="local",
            resume=None,
            reason="slot 1 of 5",
            dispatched_at=at,
        ),
        JobStarted(attempt_id=attempt_id, started_at=at),
        *(_checkpointed(attempt_id, step) for step in (250, 500)),
        JobTrainingFinished(
            attempt_id=attempt_id, steps=1000, final_loss=0.0123, artifacts=[], undelivered=[], finished_at=at
        ),
        JobCompleted(completed_at=at, delivery="delivered", missing=[]),
    ]


def _checkpointed(attempt_id: UUID, step: int) -> JobCheckpointed:
    key = f"attempts/{attempt_id}/checkpoint-{step}/model.safetensors"
    file = CheckpointFile(name="model.safetensors", sha256=_SHA, size_bytes=1_048_576, object_key=key)
    return JobCheckpointed(attempt_id=attempt_id, checkpoint=Checkpoint(step=step, files=[file]))
