"""Calls an address that a person gave, to see whether it answers, without becoming their way into a private network.

Every address that the host resolves to must be public, or lie in a network that the operator has allowed
(TUNEWRIGHT_PRIVATE_NETWORKS); the call then goes to the address that was checked. Redirects are not followed, and of
the answer only its status is told.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import msgspec

from shared.contracts.training.endpoints import IpAddress, address_problem, literal_address

TIMEOUT_S = 10.0
LONGEST_TIMEOUT_S = 60.0
LIVE_PATH = "/api/cloud/health/live"
_PORTS = {"http": 80, "https": 443}

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a call; `url` is shown without its query."""

    url: str
    success: bool
    message: str
    latency_ms: float | None = None
    status_code: int | None = None
    error: str | None = None


def networks_of(text: str) -> tuple[IpNetwork, ...]:
    """`10.0.0.0/8, 127.0.0.1` as networks. Raises ValueError for a word that is none."""
    return tuple(ipaddress.ip_network(word) for word in text.replace(",", " ").split())


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class WebhookProbe:
    """Makes one call at a time for whoever asks; nothing is kept."""

    def __init__(self, private_networks: Sequence[IpNetwork] = (), resolve: Resolve = resolve) -> None:
        self._networks = private_networks
        self._resolve = resolve

    async def of_gateway(self, origin: str) -> ProbeResult:
        """Whether a gateway of Tunewright answers at this origin, as a provider would reach it."""
        url = f"{origin.rstrip('/')}{LIVE_PATH}"
        found = await self._call("GET", url, None, TIMEOUT_S)
        if found.error is None and not found.success:
            return msgspec.structs.replace(found, error=f"it answered {found.status_code} where 200 was due")
        return found

    async def of_url(self, url: str, body: Any, timeout_s: float) -> ProbeResult:
        """Whether a webhook's receiver takes this body."""
        return await self._call("POST", url, body, min(max(timeout_s, 0.1), LONGEST_TIMEOUT_S))

    async def _call(self, method: str, url: str, body: Any, timeout_s: float) -> ProbeResult:
        shown = _shown(url)
        try:
            async with asyncio.timeout(timeout_s):
                parts, address = await self._checked(url)
                started = time.monotonic()
                status = await self._status(method, parts, address, body, timeout_s)
        except _RefusedError as refused:
            return ProbeResult(url=shown, success=False, message="it may not be called", error=str(refused))
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            reason = "it did not answer in time" if isinstance(error, TimeoutError) else type(error).__name__
            return ProbeResult(url=shown, success=False, message="it does not answer", error=reason)
        return ProbeResult(
            url=shown,
            success=200 <= status < 300,  # noqa: PLR2004 - the statuses of success
            message=f"it answered {status}",
            latency_ms=round((time.monotonic() - started) * 1000, 1),
            status_code=status,
        )

    async def _status(self, method: str, parts: SplitResult, address: str, body: Any, timeout_s: float) -> int:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_s) as client:
            url = httpx.URL(parts.geturl()).copy_with(host=address)
            request = client.build_request(
                method,
                url,
                json=body,
                headers={"Host": parts.netloc, "User-Agent": "tunewright-webhook-test"},
                extensions={"sni_hostname": parts.hostname} if parts.scheme == "https" else {},
            )
            response = await client.send(request, stream=True)  # the body is nobody's business here
            await response.aclose()
            return response.status_code

    async def _checked(self, url: str) -> tuple[SplitResult, str]:
        """The URL in parts and an address of its host that may be called. Raises _RefusedError or OSError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _RefusedError("it is no URL") from None
        if parts.scheme not in _PORTS or not host or "@" in parts.netloc:
            raise _RefusedError("it must begin with http:// or https://, name a host, and hold no password")
        literal = literal_address(host)
        addresses = [str(literal)] if literal else await self._resolve(host, port or _PORTS[parts.scheme])
        for text in addresses:
            if (problem := self._problem(ipaddress.ip_address(text.partition("%")[0]))) is not None:
                raise _RefusedError(problem)
        return parts, addresses[0]

    def _problem(self, address: IpAddress) -> str | None:
        if (problem := address_problem(address)) is not None:
            return problem
        real = literal_address(str(address)) or address
        if real.is_global or any(real in network for network in self._networks):
            return None
        return "it leads to an address that is not public; the operator may allow it in TUNEWRIGHT_PRIVATE_NETWORKS"


class _RefusedError(Exception):
    """The address may not be called, and why."""


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
