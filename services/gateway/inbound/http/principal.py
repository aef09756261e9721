"""Who asks. Single-user mode: every request is the local administrator, with or without an API key.

This is the one place where identity will be decided; routes only ever see a Principal.
"""

from typing import Any

from litestar import Request

from services.gateway.handlers import Principal

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
