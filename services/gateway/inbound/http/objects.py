"""`/api/cloud/storage` and `/api/v1/datasets`: bytes on their way to and from storage, never held whole."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from litestar import HttpMethod, Request, Response, Router, get, put, route
from litestar.params import FromPath
from litestar.response import Stream

from services.gateway.domain.tokens import check_upload_place
from services.gateway.inbound.http.jobs import job_id_of
from services.gateway.inbound.http.parts import GatewayParts, Parts
from services.gateway.inbound.http.principal import attempt_token
from services.gateway.inbound.http.problems import OK
from services.gateway.outbound.object_store import OpenObject
from shared.problems import Rejected

AnyRequest = Request[Any, Any, Any]
PREFIX = "/api/cloud/storage/"
SANDBOX = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""A stored page or picture with a script in it runs nothing on this origin."""


def place_of(request: AnyRequest) -> tuple[str, str]:
    """Bucket and key as the client wrote them: percent-decoded once, nothing normalised away."""
    raw: bytes = request.scope["raw_path"]
    bucket, _, key = raw.decode("ascii").partition("?")[0].removeprefix(PREFIX).partition("/")
    return unquote(bucket), unquote(key)


@put("/{bucket:str}/{key:path}", status_code=OK, request_max_body_size=None)
async def put_object(
    bucket: FromPath[str], key: FromPath[str], request: AnyRequest, parts: Parts
) -> Response[dict[str, Any]]:
    """Store an object of a running attempt; 200 means that it is stored whole, verified and recorded.

    Needs the attempt's token as `X-Upload-Token`, `X-SimpleTuner-Secret` or bearer; `X-Content-SHA256` is compared.
    """
    bucket, key = place_of(request)
    owner = check_upload_place(bucket, key)
    attempt = await parts.access.of_job(_owner_id(owner), attempt_token(request))
    limit = parts.max_object_bytes
    _check_announced(request.headers, limit)
    stored = await parts.objects.put(
        f"{bucket}/{key}",
        _bounded(request, limit),
        request.headers,
        {"X-Job-Id": str(attempt.job_id), "X-Attempt-Id": str(attempt.attempt_id)},
    )
    return Response(stored.body, headers=stored.headers)


@route("/{bucket:str}/{key:path}", http_method=[HttpMethod.GET, HttpMethod.HEAD], status_code=OK)
async def get_object(bucket: FromPath[str], key: FromPath[str], request: AnyRequest, parts: Parts) -> Stream:
    """Read an object, or a range of it."""
    bucket, key = place_of(request)
    return await _passed_down(request, parts, f"{bucket}/{key}")


@get("/")
async def list_buckets(parts: Parts) -> Any:
    """The buckets that hold something."""
    return await parts.objects.read_json("", {})


@get("/{bucket:str}")
async def list_objects(bucket: FromPath[str], request: AnyRequest, parts: Parts) -> Any:
    """The objects of a bucket by key; `prefix`, `job_id`, `after` and `limit` narrow the list."""
    wanted = {
        name: value for name in ("prefix", "job_id", "after", "limit") if (value := request.query_params.get(name))
    }
    return await parts.objects.read_json(bucket, wanted)


@get("/{sha256:str}")
async def get_dataset(sha256: FromPath[str], request: AnyRequest, parts: Parts) -> Stream:
    """A packed dataset of the job that the attempt's token belongs to."""
    view = await parts.access.job_of_token(attempt_token(request))
    if sha256 not in {dataset.sha256 for dataset in view.datasets}:
        raise Rejected("object_not_found", "the job has no such dataset", job_id=str(view.job_id))
    return await _passed_down(request, parts, f"datasets/{sha256}")


async def _passed_down(request: AnyRequest, parts: GatewayParts, place: str) -> Stream:
    method = "HEAD" if request.method == HttpMethod.HEAD else "GET"
    found = await parts.objects.open(method, place, request.headers)
    if method == "HEAD":
        await found.close()
    headers = {**found.headers, "Content-Security-Policy": SANDBOX}
    media_type = headers.pop("content-type", "application/octet-stream")
    chunks = _nothing() if method == "HEAD" else _chunks(found)
    return Stream(chunks, status_code=found.status, headers=headers, media_type=media_type)


async def _chunks(found: OpenObject) -> AsyncGenerator[bytes]:
    async for chunk in found.chunks():
        yield chunk


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield b""


async def _bounded(request: AnyRequest, limit: int) -> AsyncGenerator[bytes]:
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken > limit:
            raise _too_large(limit)
        if chunk:
            yield chunk


def _check_announced(headers: Mapping[str, str], limit: int) -> None:
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> Rejected:
    return Rejected("payload_too_large", f"an object has at most {limit} bytes", limit_bytes=limit)


def _owner_id(text: str) -> UUID:
    try:
        return job_id_of(text)
    except Rejected:
        raise Rejected("invalid_object_key", f"{text!r} is not a job id; uploads go to outputs/<job_id>/…") from None


ROUTER = Router(
    PREFIX.rstrip("/"), route_handlers=[put_object, get_object, list_buckets, list_objects], tags=["Storage"]
)
DATASETS_ROUTER = Router("/api/v1/datasets", route_handlers=[get_dataset], tags=["Storage"])
