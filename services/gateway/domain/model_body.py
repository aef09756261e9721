"""The model registry: what a job that completed leaves behind, told from the job's own view and nothing else."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from services.gateway.domain.job_body import deliveries_of
from services.gateway.domain.views import ArtifactView, JobView

SHORT_ID = 8
_ASIDE = ("checkpoint-", "samples/", "predictions/")
"""What lies beside a model and is no part of it, by the beginning of its name."""


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model; `url` is where this gateway serves it."""

    name: str
    bucket: str
    object_key: str
    sha256: str
    size_bytes: int
    content_type: str
    url: str


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model. Its id is that of the job that made it; names need not be unique."""

    model_id: str
    job_id: str
    name: str
    family: str | None
    kind: Literal["lora", "full"]
    base_model: str | None
    config_hash: str
    config_name: str | None
    user_id: str
    provider: str
    steps: int | None
    final_loss: float | None
    files: list[ModelFile]
    samples: list[str]
    """Object keys of the validation pictures."""
    missing: list[str]
    """Files that the trainer named and that never arrived here."""
    deliveries: list[dict[str, Any]]
    """What came of giving the files to other places."""
    created_at: datetime


def model_of(view: JobView) -> ModelBody | None:
    """The model that a listed job left; None for a job that did not complete, or was deleted."""
    facts = view.job
    if facts.phase != "completed" or facts.ended_at is None or not view.visible:
        return None
    stored = sorted(view.artifacts.values(), key=lambda artifact: artifact.object_key)
    named = [(artifact, _name_of(view, artifact)) for artifact in stored]
    fallback = f"{facts.training.family or 'model'}-{facts.training.kind}-{str(view.job_id)[-SHORT_ID:]}"
    return ModelBody(
        model_id=str(view.job_id),
        job_id=str(view.job_id),
        name=facts.tracker_run_name or facts.config_name or fallback,
        family=facts.training.family,
        kind=facts.training.kind,
        base_model=facts.training.base_model,
        config_hash=facts.training.config_hash,
        config_name=facts.config_name,
        user_id=facts.user_id,
        provider=facts.provider,
        steps=facts.steps,
        final_loss=facts.final_loss,
        files=[_file(artifact, name) for artifact, name in named if not name.startswith(_ASIDE)],
        samples=[artifact.object_key for artifact, name in named if name.startswith("samples/")],
        missing=facts.missing,
        deliveries=deliveries_of(view),
        created_at=facts.ended_at,
    )


def _name_of(view: JobView, artifact: ArtifactView) -> str:
    """The path below the job's own folder."""
    return artifact.object_key.removeprefix(f"{view.job_id}/")


def _file(artifact: ArtifactView, name: str) -> ModelFile:
    return ModelFile(
        name=name,
        bucket=artifact.bucket,
        object_key=artifact.object_key,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        content_type=artifact.content_type,
        url=f"/api/cloud/storage/{artifact.bucket}/{artifact.object_key}",
    )
