"""Who asks. Single-user mode: every request is the local administrator, with or without an API key.

This is the one place where identity will be decided; routes only ever see a Principal.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from services.gateway.domain.refusals import invalid
from services.gateway.handlers import Principal
from services.gateway.inbound.http.parts import Parts
from services.gateway.outbound.webhook_probe import IpNetwork

JSON_TYPE = "application/json"
LOCAL_USER = "local"
API_KEY_PREFIX = "stk_"
UPLOAD_HEADERS = ("x-upload-token", "x-simpletuner-secret")


def provide_principal(request: Request[Any, Any, Any], parts: Parts) -> Principal:
    """The caller. `source_ip` is the peer of the socket: forwarded headers are anybody's claim.

    Behind proxies of the operator (GATEWAY_TRUSTED_PROXIES) it is the last address that no such proxy has.
    """
    peer = request.client.host if request.client else None
    source_ip = client_address(peer, request.headers.getall("x-forwarded-for", []), parts.trusted_proxies)
    return Principal(user_id=LOCAL_USER, is_admin=True, source_ip=source_ip)


def client_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[IpNetwork]) -> str | None:
    """Who called, going back from the peer through as many of the operator's own proxies as there are."""
    claimed = [word.strip() for header in forwarded for word in header.split(",")]
    address = peer
    while claimed and address is not None and _is_in(address, trusted):
        address = claimed.pop()
    return address


def _is_in(text: str, networks: Sequence[IpNetwork]) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


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
