"""What an attempt's trainer is handed, made from the recorded request alone."""

from urllib.parse import quote
from uuid import UUID

from shared.contracts.attempt import AttemptRequested
from shared.contracts.job import Checkpoint
from shared.contracts.run import DatasetRef, FileRef, ResumePoint, RunSpec

OUTPUT_BUCKET = "outputs"


def build_run_spec(attempt_id: UUID, request: AttemptRequested, gateway_url: str) -> RunSpec:
    """The run of `attempt_id`; file addresses are relative to `gateway_url`, outputs go under the job's id."""
    return RunSpec(
        job_id=str(request.job_id),
        attempt_id=str(attempt_id),
        attempt_number=request.attempt_number,
        gateway_url=gateway_url,
        config=request.config,
        dataloader=request.dataloader,
        datasets=[
            DatasetRef(
                id=packed.dataset_id,
                sha256=packed.sha256,
                size_bytes=packed.size_bytes,
                url=f"/api/v1/datasets/{packed.sha256}",
            )
            for packed in request.datasets
        ],
        resume=_resume_point(request.resume),
        output_bucket=OUTPUT_BUCKET,
        output_prefix=str(request.job_id),
    )


def _resume_point(checkpoint: Checkpoint | None) -> ResumePoint | None:
    if checkpoint is None:
        return None
    files = [
        FileRef(
            name=file.name,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            url=f"/api/cloud/storage/{OUTPUT_BUCKET}/{quote(file.object_key)}",
        )
        for file in checkpoint.files
    ]
    return ResumePoint(step=checkpoint.step, files=files)
