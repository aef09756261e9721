"""The outermost layer of every request: who may be called, by which name, how big, under which id, with which headers.

Single-user mode has no sign-in, so the guard against pages of other sites lives here: a Host that this server does
not serve (DNS rebinding) and, for requests that change something, an Origin that is not this server's.
"""

import ipaddress
import re
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.trace import SpanKind

from services.gateway.inbound.http.problems import MEDIA_TYPE, Problem
from shared.ids import new_id
from shared.observability import names, tracing

SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("x-xss-protection", "0"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ("cross-origin-resource-policy", "same-origin"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
QUIET_PATHS = frozenset({"/health", "/api/cloud/health/live", "/api/cloud/health/ready"})
DEFAULT_PORTS = {"http": 80, "https": 443}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.stdlib.get_logger()


class HostRule(msgspec.Struct, frozen=True, kw_only=True):
    """Loopback names, the bound address, and what the operator added; `*` lets every Host through.

    An added `host:port` is served under that port only, and its pages may change things here.
    """

    names: frozenset[str]

    @classmethod
    def of(cls, bound: str, allowed: Iterable[str]) -> "HostRule":
        """The rule for an address this server is bound to and the operator's list."""
        return cls(names=frozenset({"localhost", bound.lower(), *(name.strip().lower() for name in allowed)}) - {""})

    def allows(self, authority: str) -> bool:
        """Whether a Host header, with or without a port, is one of ours."""
        if "*" in self.names or authority.lower() in self.names:
            return True
        host = _host_of(authority)
        return host is not None and (host in self.names or _is_loopback(host))

    def allows_origin(self, origin: str | None, authority: str) -> bool:
        """Whether a browser page of this origin may change something at this Host; programs send no Origin.

        Another port of the same host is another program's page.
        """
        if origin is None:
            return True
        scheme, found, rest = origin.lower().partition("://")
        page = _host_and_port(rest, scheme) if found else None
        if page is None:
            return False
        # A proxy that ends TLS speaks http to us: a Host without a port means the default port of the page's scheme.
        return page == _host_and_port(authority.lower(), scheme) or f"{page[0]}:{page[1]}" in self.names


class Edge:
    """Wraps the application; answers by itself only to refuse."""

    def __init__(self, app: ASGIApp, hosts: HostRule) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_security(message.get("headers", ()), request_id)
            await send(message)

        with (
            structlog.contextvars.bound_contextvars(**{names.CORRELATION_ID: request_id}),
            tracing.span(scope["method"], kind=SpanKind.SERVER, traceparent=headers.get("traceparent")) as span,
        ):
            problem = self._refusal(scope["method"], headers)
            if problem is None:
                await self._app(scope, receive, send_with_headers)
                span.update_name(f"{scope['method']} {scope.get('path_template', '')}".strip())
            else:
                await _refuse(problem, scope["method"], scope["path"], request_id, send_with_headers)
            _log_request(scope["method"], scope["path"], status, time.perf_counter() - started)

    def _refusal(self, method: str, headers: dict[str, str]) -> Problem | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._hosts.allows(host):
            detail = f"this server does not serve the host {host[:255]!r}; add it to GATEWAY_ALLOWED_HOSTS if it should"
            return Problem(code="host_not_allowed", detail=detail)
        if method not in SAFE_METHODS and not self._hosts.allows_origin(origin, host):
            return Problem(code="host_not_allowed", detail=f"pages of {(origin or '')[:255]!r} may not change anything")
        return None


def _host_of(authority: str) -> str | None:
    try:
        return urlsplit(f"//{authority}").hostname
    except ValueError:
        return None


def _host_and_port(authority: str, scheme: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None
    return (host, port) if host and port else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _request_id(given: str | None) -> str:
    return given if given is not None and _REQUEST_ID.fullmatch(given) else str(new_id())


def _with_security(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    kept = list(headers)
    present = {name.lower() for name, _ in kept}
    added = [*SECURITY_HEADERS, ("x-request-id", request_id), ("cache-control", "no-store")]
    kept.extend((name.encode(), value.encode()) for name, value in added if name.encode() not in present)
    return kept


async def _refuse(problem: Problem, method: str, path: str, request_id: str, send: Send) -> None:
    body = msgspec.json.encode(problem.document(method, path, request_id))
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    start: Any = {"type": "http.response.start", "status": problem.status(method), "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _log_request(method: str, path: str, status: int, duration_s: float) -> None:
    level = log.debug if path in QUIET_PATHS else log.info
    level("gateway.request.handled", method=method, path=path, status=status, duration_s=round(duration_s, 4))
