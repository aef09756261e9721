"""Commands accepted by, and events written to, `dataset-<uuid>` and `artifact-<uuid>` streams. Owner: storage."""

from datetime import datetime
from uuid import UUID

from shared.contracts.job import ArtifactRef, Command, DatasetRequest, Event, PackedDataset

# ---- events ----------------------------------------------------------------------------------------------------------


class DatasetsPacked(Event, frozen=True, kw_only=True, tag="dataset.packed.v1"):
    """All datasets of one job are stored, each addressed by the SHA-256 of its tar. Stream: `dataset-<job id>`."""

    job_id: UUID
    datasets: list[PackedDataset]
    packed_at: datetime


class DatasetsRefused(Event, frozen=True, kw_only=True, tag="dataset.refused.v1"):
    """A dataset cannot be used: where, why, and what to do."""

    job_id: UUID
    dataset_id: str
    message: str
    advice: str
    refused_at: datetime


class ArtifactStored(Event, frozen=True, kw_only=True, tag="artifact.stored.v1"):
    """An object was received whole and its digest verified. Stream: `artifact-<uuid5 of bucket/key>`.

    Storing the same key again with other content is the next version of the same stream.
    """

    job_id: UUID
    attempt_id: UUID | None
    bucket: str
    object_key: str
    name: str
    size_bytes: int
    sha256: str
    content_type: str
    stored_at: datetime
    md5: str | None = None
    """Hex; the ETag that S3 clients compare. Not a proof of anything."""


ArtifactEvent = DatasetsPacked | DatasetsRefused | ArtifactStored

# ---- commands; the subject is cmd.storage.<tag> ----------------------------------------------------------------------


class PackDatasets(Command, frozen=True, kw_only=True, tag="pack_datasets"):
    """Packs every dataset of a job. A repeat answers with the first result."""

    job_id: UUID
    datasets: list[DatasetRequest]


class ConfirmArtifacts(Command, frozen=True, kw_only=True, tag="confirm_artifacts"):
    """Asks which of these are not stored with that digest; answers `{"missing": [name, …]}` and writes nothing."""

    job_id: UUID
    artifacts: list[ArtifactRef]


class RecordReports(Command, frozen=True, kw_only=True, tag="record_reports"):
    """Stores a batch of a trainer's report lines (JSON of `ReportLine`); answers `{"ack": seq}`. Repeats are harmless.

    `ack` is the highest seq up to which the attempt has no gap.
    """

    job_id: UUID
    attempt_id: UUID
    lines: list[dict[str, object]]


class ReadReports(Command, frozen=True, kw_only=True, tag="read_reports"):
    """Reads stored report lines of a job in arrival order.

    Answers `{"lines": [...], "cursors": [...], "cursor": int}`: `cursors` holds each line's own cursor, `cursor` is
    where to read on.
    `after` is a cursor from an earlier answer (0 = from the start); `types` empty means all types. At most `limit`
    lines and 4 MiB come back; `tail` reads the last `limit` lines instead of the first ones after the cursor.
    """

    job_id: UUID
    after: int = 0
    types: list[str] = []
    limit: int = 1000
    tail: bool = False
