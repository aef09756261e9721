"""`objects` and `datasets`: what is stored, for lists. Reads of one object go to its stream, which is never behind."""

from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from shared.contracts import catalogue
from shared.contracts.artifact import ArtifactStored, DatasetsPacked
from shared.contracts.envelope import RecordedEvent
from shared.sql import load_queries

SQL = load_queries(Path(__file__).parents[1] / "sql" / "queries.sql")
TABLES = ("objects", "datasets")
QUERY_TIMEOUT_S = 30.0
MAX_LISTED = 1000


class BucketRow(msgspec.Struct, frozen=True, kw_only=True):
    """One bucket that has something in it."""

    bucket: str
    size_bytes: int
    file_count: int
    last_modified: datetime


class ObjectRow(msgspec.Struct, frozen=True, kw_only=True):
    """One object key and the content it names now."""

    object_key: str
    size_bytes: int
    sha256: str
    stored_at: datetime
    job_id: UUID | None = None
    attempt_id: UUID | None = None
    name: str | None = None
    md5: str | None = None
    content_type: str = "application/octet-stream"


async def project(conn: asyncpg.Connection, recorded: RecordedEvent) -> None:
    """Folds one event into the rows; the same event twice changes nothing."""
    event = catalogue.decode(recorded)
    if isinstance(event, ArtifactStored):
        await conn.execute(
            SQL.upsert_object,
            event.bucket,
            event.object_key,
            recorded.stream_version,
            event.job_id,
            event.attempt_id,
            event.name,
            event.size_bytes,
            event.sha256,
            event.md5,
            event.content_type,
            event.stored_at,
        )
    elif isinstance(event, DatasetsPacked):
        for dataset in event.datasets:
            await conn.execute(
                SQL.insert_dataset, dataset.sha256, dataset.size_bytes, dataset.file_count, event.packed_at
            )


async def list_buckets(pool: asyncpg.Pool) -> list[BucketRow]:
    """Every bucket with something in it, by name."""
    rows = await pool.fetch(SQL.list_buckets, timeout=QUERY_TIMEOUT_S)
    return [msgspec.convert(dict(row), BucketRow) for row in rows]


async def list_objects(
    pool: asyncpg.Pool, bucket: str, *, prefix: str, job_id: UUID | None, after: str, limit: int
) -> list[ObjectRow]:
    """Objects of a bucket by key, after the key `after`; at most 1000."""
    rows = await pool.fetch(
        SQL.list_objects, bucket, prefix, job_id, after, max(1, min(limit, MAX_LISTED)), timeout=QUERY_TIMEOUT_S
    )
    return [msgspec.convert(dict(row), ObjectRow) for row in rows]


async def list_datasets(pool: asyncpg.Pool, *, prefix: str, after: str, limit: int) -> list[ObjectRow]:
    """Packed datasets by digest, after the digest `after`; at most 1000."""
    rows = await pool.fetch(SQL.list_datasets, prefix, after, max(1, min(limit, MAX_LISTED)), timeout=QUERY_TIMEOUT_S)
    return [
        ObjectRow(
            object_key=row["sha256"],
            size_bytes=row["size_bytes"],
            sha256=row["sha256"],
            stored_at=row["packed_at"],
            content_type="application/x-tar",
        )
        for row in rows
    ]
