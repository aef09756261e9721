"""Who asks. Single-user mode: every request is the local administrator, with or without an API key.

This is the one place where identity will be decided; routes only ever see a Principal.
"""

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from services.gateway.domain.submission import invalid
from services.gateway.handlers import Principal

JSON_TYPE = "application/json"
LOCAL_USER = "local"
API_KEY_PREFIX = "stk_"
UPLOAD_HEADERS = ("x-upload-token", "x-simpletuner-secret")


def provide_principal(request: Request[Any, Any, Any]) -> Principal:
    """The caller. `source_ip` is the peer of the socket: forwarded headers are anybody's claim."""
    peer = request.client
    return Principal(user_id=LOCAL_USER, is_admin=True, source_ip=peer.host if peer else None)


def bearer_token(request: Request[Any, Any, Any]) -> str | None:
    """The bearer of an Authorization header, unless it is an API key."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    token = value.strip()
    if scheme.lower() != "bearer" or not token or token.startswith(API_KEY_PREFIX):
        return None
    return token


def attempt_token(request: Request[Any, Any, Any]) -> str | None:
    """An attempt's token, from an upload header or as bearer."""
    for name in UPLOAD_HEADERS:
        if value := request.headers.get(name):
            return value
    return bearer_token(request)


def require_json(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Guard of routes that read a JSON body. Raises `validation_error` for a body under another media type.

    A page of another site may send the other types without asking first; for JSON its browser asks, and is refused.
    """
    given = connection.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != JSON_TYPE:
        found = f"the body came as {given[:100]!r}" if given else "the header is missing"
        advice = f"Send the header Content-Type: {JSON_TYPE}."
        raise invalid("Content-Type", f"{JSON_TYPE} is needed, {found}", advice)
