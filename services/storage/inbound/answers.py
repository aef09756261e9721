"""How storage's internal HTTP interface answers: problem documents, object headers, byte ranges."""

import re
from email.utils import format_datetime
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from shared.contracts.artifact import ArtifactStored
from shared.problems import CODES, Rejected, Unavailable

STATUS: dict[str, int] = {
    "validation_error": 400,
    "digest_mismatch": 400,
    "invalid_object_key": 400,
    "missing_token": 401,
    "invalid_token": 401,
    "object_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "version_conflict": 409,
    "payload_too_large": 413,
    "service_unavailable": 503,
    "storage_full": 507,
}
INTERNAL = 500
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

log = structlog.stdlib.get_logger()


def problem(code: str, detail: str, instance: str, fields: dict[str, Any]) -> Response[bytes]:
    """An RFC 9457 document; `code` is the contract."""
    status = STATUS.get(code, INTERNAL)
    body = {
        **fields,
        "type": f"/problems/{code}",
        "title": CODES[code],
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
    }
    # The body of a refused upload was not read: the connection cannot be used again.
    headers = {"Connection": "close"}
    if status == STATUS["service_unavailable"]:
        headers["Retry-After"] = "2"
    return Response(
        msgspec.json.encode(body), status_code=status, media_type="application/problem+json", headers=headers
    )


def rejected(request: Request[Any, Any, Any], error: Rejected) -> Response[bytes]:
    """A refusal, as a document."""
    return problem(error.code, error.detail, request.url.path, error.fields)


def unavailable(request: Request[Any, Any, Any], error: Unavailable) -> Response[bytes]:
    """Somebody we need is away."""
    return problem("service_unavailable", error.detail, request.url.path, {})


def http_problem(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What Litestar itself refuses: unknown paths, methods, parameters that cannot be read."""
    codes = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 503: "service_unavailable"}
    fallback = "internal_error" if error.status_code >= INTERNAL else "validation_error"
    return problem(codes.get(error.status_code, fallback), error.detail, request.url.path, {})


def internal_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """A bug or a broken disk: the log has the traceback, the caller a promise that nothing was recorded."""
    log.error("storage.request.failed", path=request.url.path, exc_info=error)
    return problem("internal_error", "storage failed; see its log", request.url.path, {})


def object_headers(stored: ArtifactStored) -> dict[str, str]:
    """What S3 clients, browsers and our own downloader read of an object."""
    return {
        "ETag": f'"{stored.md5 or stored.sha256}"',
        "Last-Modified": format_datetime(stored.stored_at, usegmt=True),
        "X-Content-SHA256": stored.sha256,
        "Accept-Ranges": "bytes",
    }


def byte_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The bytes `start`..`end` (not included) that a Range header asks for; None means all of them.

    A header that asks for several ranges or that we cannot read is passed over, as RFC 9110 allows.

    Raises:
        ValueError: the range lies wholly outside the object; the answer is 416.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None:
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise ValueError(header)
    return start, end
