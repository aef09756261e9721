"""Requests to a model server that people run themselves: short ways to say that it is away, closed or wrong."""

import ipaddress
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from trainer.failures import AttemptFailed

_TIMEOUT = httpx.Timeout(connect=10, read=600, write=600, pool=10)
"""Reading takes as long as the server needs to load or convert an adapter."""
_CLOSED = frozenset({401, 403})


class ModelServer:
    """One server. The key is sent as bearer token and shown nowhere."""

    def __init__(self, title: str, url: str, key: str) -> None:
        self.title = title
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")) or urlsplit(self.url).password:
            advice = "Give it as http://HOST:PORT; a key goes into the environment or a file."
            raise AttemptFailed("bad_config", f"the address of {title} is not an http:// or https:// URL", advice)
        self.http = httpx.Client(
            base_url=self.url,
            timeout=_TIMEOUT,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=not _is_loopback(self.url),
        )

    def close(self) -> None:
        """Closes every connection."""
        self.http.close()

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """The answer, whatever its status but for a refused key.

        Raises:
            AttemptFailed: unreachable, or bad_config when the key is missing or wrong.
        """
        with self.reachable():
            response = self.http.request(method, path, **arguments)
        return self.checked(response)

    def checked(self, response: httpx.Response) -> httpx.Response:
        """The response, unless it says that the key is missing or wrong."""
        if response.status_code in _CLOSED:
            advice = "Put the server's key into SERVE_API_KEY, or into a file named with --key-file."
            raise AttemptFailed("bad_config", f"{self.title} at {self.url} wants another key", advice)
        return response

    @contextmanager
    def reachable(self) -> Generator[None]:
        """Turns a broken connection into words."""
        try:
            yield
        except httpx.TransportError as error:
            message = f"{self.title} does not answer at {self.url} ({error or type(error).__name__})"
            raise AttemptFailed("unreachable", message, f"Start {self.title}, or correct the address.") from error

    def odd(self, response: httpx.Response) -> AttemptFailed:
        """What to say of an answer that none of the documented ways covers."""
        where = f"{response.request.method} {response.request.url.path}"
        message = f"{self.title} answered {response.status_code} to {where}: {told_by(response)}"
        return AttemptFailed("unreachable", message, f"Look into the log of {self.title}; is it {self.title} at all?")


def told_by(response: httpx.Response) -> str:
    """The reason in an error answer of either server, or the beginning of whatever it said."""
    try:
        body: object = response.json()
    except ValueError:
        return response.text[:300].strip()
    if not isinstance(body, dict):
        return str(body)[:300]
    members = cast("dict[str, Any]", body)
    error: object = members.get("error", members)
    if isinstance(error, dict):
        told = cast("dict[str, Any]", error)
        return str(told.get("message") or told.get("detail") or told)
    return str(error)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
