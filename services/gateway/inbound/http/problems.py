"""Problem code -> HTTP status and RFC 9457 document: the only file of the gateway that knows status codes.

A document also has the members `success`, `error` and `detail` that existing scripts read.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException, ValidationException

from shared.contracts.training.problems import ConfigRejected
from shared.observability import names
from shared.problems import CODES, Rejected, Unavailable

MEDIA_TYPE = "application/problem+json"
OK = 200
ACCEPTED_PARTIAL = 206

STATUS: dict[str, int] = {
    "validation_error": 400,
    "invalid_config": 400,
    "invalid_payload": 400,
    "unknown_provider": 400,
    "invalid_object_key": 400,
    "digest_mismatch": 400,
    "host_not_allowed": 400,
    "dataset_refused": 400,
    "missing_token": 401,
    "invalid_token": 401,
    "not_assigned": 403,
    "invalid_signature": 401,
    "ip_not_allowed": 403,
    "not_found": 404,
    "provider_not_found": 404,
    "job_not_found": 404,
    "config_not_found": 404,
    "object_not_found": 404,
    "model_not_found": 404,
    "worker_not_found": 404,
    "method_not_allowed": 405,
    "invalid_job_state": 409,
    "version_conflict": 409,
    "attempt_superseded": 409,
    "stale_epoch": 409,
    "credential_in_use": 409,
    "worker_busy": 409,
    "payload_too_large": 413,
    "idempotency_key_reused": 422,
    "provider_not_configured": 422,
    "funds_refused": 429,
    "internal_error": 500,
    "provider_refused": 502,
    "service_unavailable": 503,
    "storage_full": 507,
}
ROUTE_STATUS: dict[tuple[str, str], int] = {
    ("DELETE", "invalid_job_state"): 400,
    ("GET", "provider_not_configured"): 401,
    ("DELETE", "worker_busy"): 400,
}
"""(method, code) -> the status that the documented contract gives instead."""

_CODE_OF_STATUS = {
    400: "validation_error",
    401: "missing_token",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    503: "service_unavailable",
}
_SERVER_ERRORS = 500
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<name>[^`]*)`")
_MISSING_FIELD = re.compile(r"missing required field `(?P<name>[^`]*)`")

log = structlog.stdlib.get_logger()

AnyRequest = Request[Any, Any, Any]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One refusal, ready to be sent."""

    code: str
    detail: str
    fields: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}

    def status(self, method: str) -> int:
        """The HTTP status for this method."""
        return ROUTE_STATUS.get((method, self.code), STATUS[self.code])

    def document(self, method: str, path: str, request_id: str) -> dict[str, Any]:
        """The members of the RFC 9457 body; standard members win over fields of the same name."""
        return {
            **self.fields,
            "type": f"/problems/{self.code}",
            "title": CODES[self.code],
            "status": self.status(method),
            "detail": self.detail,
            "instance": path,
            "code": self.code,
            "correlation_id": request_id,
            "success": False,
            "error": self.detail,
        }


def from_rejected(refusal: Rejected) -> Problem:
    """A refusal under its own code; a code nobody registered is a bug of ours."""
    if refusal.code not in STATUS:
        log.error("gateway.problem.unmapped", error_code=refusal.code, detail=refusal.detail)
        return Problem(code="internal_error", detail=CODES["internal_error"])
    headers = {"WWW-Authenticate": "Bearer"} if refusal.code in {"missing_token", "invalid_token"} else {}
    return Problem(code=refusal.code, detail=refusal.detail, fields=refusal.fields, headers=headers)


def from_unavailable(away: Unavailable) -> Problem:
    """Somebody we need is away: come back later."""
    return Problem(
        code="service_unavailable",
        detail=away.detail,
        fields={"retry_after_s": away.retry_after_s},
        headers={"Retry-After": str(away.retry_after_s)},
    )


def from_config(refusal: ConfigRejected) -> Problem:
    """Every problem of a config at once, each with its field and what to do."""
    errors = [msgspec.to_builtins(problem) for problem in refusal.problems]
    return Problem(code="invalid_config", detail=str(refusal), fields={"errors": errors})


def from_http(error: HTTPException) -> Problem:
    """Litestar's own refusals, in the same words as ours."""
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    if isinstance(error, ValidationException):
        errors = [_field_error(item) for item in _items(error.extra)]
        detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors) or CODES["validation_error"]
        return Problem(code="validation_error", detail=detail, fields={"errors": errors})
    if isinstance(error, NotFoundException | MethodNotAllowedException):
        code = _CODE_OF_STATUS[error.status_code]
        return Problem(code=code, detail=CODES[code], headers=headers)
    if error.status_code >= _SERVER_ERRORS:
        return Problem(code="internal_error", detail=CODES["internal_error"])
    code = _CODE_OF_STATUS.get(error.status_code, "validation_error")
    is_json = error.detail.startswith("JSON is malformed")
    return Problem(code="invalid_payload" if is_json else code, detail=error.detail or CODES[code])


def answer(request: AnyRequest, problem: Problem) -> Response[bytes]:
    """The problem as a response."""
    request_id = request_id_of(cast("dict[str, Any]", request.scope))
    document = problem.document(request.method, request.url.path, request_id)
    return Response(
        msgspec.json.encode(document, enc_hook=str),
        status_code=document["status"],
        media_type=MEDIA_TYPE,
        headers=dict(problem.headers),
    )


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id that the edge gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


def _on_rejected(request: AnyRequest, error: Rejected) -> Response[bytes]:
    return answer(request, from_rejected(error))


def _on_unavailable(request: AnyRequest, error: Unavailable) -> Response[bytes]:
    log.warning("gateway.request.deferred", path=request.url.path, detail=error.detail)
    return answer(request, from_unavailable(error))


def _on_config(request: AnyRequest, error: ConfigRejected) -> Response[bytes]:
    return answer(request, from_config(error))


def _on_http(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    return answer(request, from_http(error))


def _on_bug(request: AnyRequest, error: Exception) -> Response[bytes]:
    correlation_id = request_id_of(cast("dict[str, Any]", request.scope))
    log.error(
        "gateway.request.failed",
        path=request.url.path,
        method=request.method,
        exc_info=error,
        **{names.CORRELATION_ID: correlation_id},
    )
    return answer(request, Problem(code="internal_error", detail=CODES["internal_error"]))


HANDLERS: dict[int | type[Exception], Callable[[AnyRequest, Any], Response[Any]]] = {
    Rejected: _on_rejected,
    Unavailable: _on_unavailable,
    ConfigRejected: _on_config,
    HTTPException: _on_http,
    Exception: _on_bug,
}


def _items(extra: Any) -> list[dict[str, Any]]:
    return [item for item in cast("list[Any]", extra) if isinstance(item, dict)] if isinstance(extra, list) else []


def _field_error(item: dict[str, Any]) -> dict[str, str]:
    """Litestar names the parameter; msgspec's message names an unknown or missing key of the body."""
    message = str(item.get("message", ""))
    key = str(item.get("key", ""))
    field = key.removeprefix("data.") if key != "data" else ""
    for pattern in (_UNKNOWN_FIELD, _MISSING_FIELD):
        if found := pattern.search(message):
            field = ".".join(part for part in (field, found["name"]) if part)
    error = {"field": field or "body", "message": message if message != "'data'" else "a JSON body is needed"}
    if _UNKNOWN_FIELD.search(message):
        error["advice"] = "Remove it, or correct its spelling."
    return error
