"""The internal HTTP interface for bytes: PUT, GET, HEAD and lists. Facts about them go through the log.

Only the gateway calls it, with one bearer token; who may read or write which object is the gateway's decision.
"""

import hmac
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from litestar import HttpMethod, Litestar, Request, Response, get, put, route
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from services.storage.domain.artifact import OUTPUTS
from services.storage.domain.object_key import check_object_key, check_sha256
from services.storage.handlers import Storage
from services.storage.inbound.answers import (
    byte_range,
    http_problem,
    internal_error,
    object_headers,
    rejected,
    unavailable,
)
from services.storage.outbound.objects import address
from services.storage.packing import DATASETS
from services.storage.projections import objects as rows
from shared.contracts.artifact import ArtifactStored
from shared.eventstore.outages import unavailable_on_outage
from shared.problems import Rejected, Unavailable
from shared.settings import Secret

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]


def object_key_of(request: AnyRequest) -> str:
    """The key as the client wrote it: percent-decoded once, nothing normalised away."""
    raw_path: bytes = request.scope["raw_path"]
    _bucket, _, key = raw_path.decode("ascii").lstrip("/").partition("/")
    return check_object_key(unquote(key, errors="surrogateescape"))


def _uuid_header(request: AnyRequest, name: str) -> UUID | None:
    value = request.headers.get(name)
    if not value:
        return None
    try:
        return UUID(value)
    except ValueError:
        raise Rejected("validation_error", f"{name} is not a UUID") from None


def _announced_size(request: AnyRequest, max_bytes: int) -> int | None:
    value = request.headers.get("Content-Length")
    if value is None:
        return None
    size_bytes = int(value)
    if size_bytes > max_bytes:
        raise Rejected("payload_too_large", f"an object has at most {max_bytes} bytes")
    return size_bytes


async def _limited(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    taken = 0
    async for chunk in chunks:
        taken += len(chunk)
        if taken > max_bytes:
            raise Rejected("payload_too_large", f"an object has at most {max_bytes} bytes")
        yield chunk


def make_app(storage: Storage, token: Secret, max_object_bytes: int) -> Litestar:
    """The interface as an ASGI application."""

    @put("/{bucket:str}/{key:path}", request_max_body_size=None, status_code=200)
    async def put_object(bucket: FromPath[str], request: AnyRequest) -> Response[dict[str, str]]:
        """Stores the body; 200 means it is durable and recorded."""
        if bucket != OUTPUTS:
            raise Rejected("invalid_object_key", f"only the bucket {OUTPUTS} takes objects", bucket=bucket)
        stored = await _receive(storage, request, max_object_bytes)
        body = {"ETag": f'"{stored.md5}"', "Key": stored.object_key, "Bucket": stored.bucket}
        return Response(body, headers={"ETag": body["ETag"], "X-Content-SHA256": stored.sha256})

    @route("/{bucket:str}/{key:path}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def get_object(bucket: FromPath[str], request: AnyRequest) -> Response[Any]:
        """The object's bytes, whole or one range of them."""
        found = await _find(storage, bucket, object_key_of(request))
        return _bytes_answer(storage, request, bucket, found)

    return Litestar(
        route_handlers=[put_object, get_object, *_list_routes(storage)],
        guards=[_token_guard(token)],
        exception_handlers={
            Rejected: rejected,
            Unavailable: unavailable,
            HTTPException: http_problem,
            Exception: internal_error,
        },
        openapi_config=None,
        logging_config=None,
    )


def _list_routes(storage: Storage) -> list[HTTPRouteHandler]:
    @get("/")
    async def list_buckets() -> dict[str, Any]:
        """Buckets with something in them."""
        with unavailable_on_outage("list_buckets"):
            found = await rows.list_buckets(storage.pool)
        buckets = [
            {"Name": row.bucket, "Size": row.size_bytes, "FileCount": row.file_count, "LastModified": row.last_modified}
            for row in found
        ]
        return {"Buckets": buckets, "total_size": sum(row.size_bytes for row in found)}

    @get("/{bucket:str}")
    async def list_contents(
        bucket: FromPath[str],
        prefix: FromQuery[str] = "",
        job_id: FromQuery[UUID | None] = None,
        after: FromQuery[str] = "",
        limit: FromQuery[int] = 1000,
    ) -> dict[str, Any]:
        """Objects of one bucket by key; `after` is the last key of the page before."""
        with unavailable_on_outage("list_contents"):
            if bucket == DATASETS:
                found = await rows.list_datasets(storage.pool, prefix=prefix, after=after, limit=limit)
            else:
                found = await rows.list_objects(
                    storage.pool, bucket, prefix=prefix, job_id=job_id, after=after, limit=limit
                )
        return {"Name": bucket, "Contents": [_listed(row) for row in found]}

    return [list_buckets, list_contents]


def _token_guard(token: Secret) -> Callable[[AnyConnection, BaseRouteHandler], None]:
    expected = f"Bearer {token.reveal()}".encode()

    def check_token(connection: AnyConnection, _handler: BaseRouteHandler) -> None:
        given = connection.headers.get("Authorization", "")
        if not given:
            raise Rejected("missing_token", "Authorization: Bearer <token> is needed")
        if not hmac.compare_digest(given.encode(), expected):
            raise Rejected("invalid_token", "the token is not valid here")

    return check_token


async def _receive(storage: Storage, request: AnyRequest, max_object_bytes: int) -> ArtifactStored:
    object_key = object_key_of(request)
    job_id = _uuid_header(request, "X-Job-Id")
    if job_id is None:
        raise Rejected("validation_error", "X-Job-Id is needed")
    attempt_id = _uuid_header(request, "X-Attempt-Id")
    declared = request.headers.get("X-Content-SHA256")
    blob = await storage.objects.put(
        OUTPUTS,
        _limited(request.stream(), max_object_bytes),
        expected_sha256=check_sha256(declared) if declared else None,
        expected_size_bytes=_announced_size(request, max_object_bytes),
    )
    stored = ArtifactStored(
        job_id=job_id,
        attempt_id=attempt_id,
        bucket=OUTPUTS,
        object_key=object_key,
        name=object_key.rpartition("/")[2],
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
        content_type=request.headers.get("Content-Type") or "application/octet-stream",
        stored_at=storage.clock(),
        md5=blob.md5,
    )
    await storage.store_artifact(stored)
    return stored


async def _find(storage: Storage, bucket: str, object_key: str) -> ArtifactStored:
    """The object of a key, or of a digest in the bucket of datasets."""
    if bucket == DATASETS:
        return await _find_dataset(storage, check_sha256(object_key))
    found = await storage.find_object(bucket, object_key)
    if found is None:
        raise Rejected("object_not_found", f"{bucket} has no object {object_key}", object_key=object_key)
    return found


async def _find_dataset(storage: Storage, sha256: str) -> ArtifactStored:
    size_bytes = await storage.objects.size(address(DATASETS, sha256))
    if size_bytes is None:
        raise Rejected("object_not_found", f"there is no dataset {sha256}", sha256=sha256)
    return ArtifactStored(
        job_id=UUID(int=0),
        attempt_id=None,
        bucket=DATASETS,
        object_key=sha256,
        name=f"{sha256}.tar",
        size_bytes=size_bytes,
        sha256=sha256,
        content_type="application/x-tar",
        stored_at=storage.clock(),
    )


def _bytes_answer(storage: Storage, request: AnyRequest, bucket: str, found: ArtifactStored) -> Response[Any]:
    headers = object_headers(found)
    try:
        part = byte_range(request.headers.get("Range"), found.size_bytes)
    except ValueError:
        headers["Content-Range"] = f"bytes */{found.size_bytes}"
        return Response(b"", status_code=416, headers=headers, media_type=found.content_type)
    start, end = part or (0, found.size_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size_bytes}"
    status_code = 200 if part is None else 206
    headers["Content-Length"] = str(end - start)
    if request.method == HttpMethod.HEAD:
        return Stream(iter(()), status_code=status_code, headers=headers, media_type=found.content_type)
    blocks = storage.objects.read(address(bucket, found.sha256), start, end)
    return Stream(blocks, status_code=status_code, headers=headers, media_type=found.content_type)


def _listed(row: rows.ObjectRow) -> dict[str, Any]:
    return {
        "Key": row.object_key,
        "Size": row.size_bytes,
        "LastModified": row.stored_at,
        "ETag": f'"{row.md5 or row.sha256}"',
        "SHA256": row.sha256,
        "ContentType": row.content_type,
        "JobId": row.job_id,
        "AttemptId": row.attempt_id,
    }
