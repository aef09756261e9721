"""The gateway over HTTP: one client with timeouts, retries where a repeat is harmless, and errors a person can read."""

import ipaddress
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from services.cli.failures import CliError, from_problem

TIMEOUT_S = 30.0
CONNECT_S = 5.0
STREAM_READ_S = 60.0
"""A live stream sends something at least every 15 s; a silent one is dead."""
RETRY_PAUSES_S = (0.5, 1.0, 2.0)
_RETRIED = frozenset({502, 503, 504})
_PAGE = 500


class ServerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event."""

    event: str
    data: str
    id: str | None


class Gateway:
    """Requests to one Tunewright."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"X-API-Key": api_key} if api_key else {}
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            trust_env=not is_loopback(self.url),
        )

    def close(self) -> None:
        """Closes every connection."""
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET; tried again while the server is away for a moment."""
        return self._again("GET", path, params=_given(query)).json()

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """The JSON of a POST whose repeat is harmless (it carries an idempotency key, or says what shall be)."""
        params = _given(query or {})
        return self._again("POST", path, json=body, params=params, headers=headers, timeout=timeout_s).json()

    def delete(self, path: str) -> Any:
        """The JSON of a DELETE."""
        return self._again("DELETE", path).json()

    @contextmanager
    def download(self, path: str, *, start: int = 0) -> Generator[httpx.Response]:
        """The answer of a GET whose bytes are not read yet, from byte `start` on (206) or from the beginning (200)."""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with _readable(self.url), self._client.stream("GET", path, headers=headers) as response:
            _check(response)
            yield response

    def events(self, path: str, last_id: str | None) -> Iterator[ServerEvent]:
        """Server-sent events until the stream ends; breaking off raises httpx.TransportError, to be resumed by id."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_S, read=STREAM_READ_S)
        with self._client.stream("GET", path, headers=headers, timeout=timeout) as response:
            _check(response)
            yield from _parsed(response.iter_lines())

    def jobs(self, **query: Any) -> Iterator[dict[str, Any]]:
        """Every listed job that the query lets through, newest first, page by page."""
        offset = 0
        while True:
            page: list[dict[str, Any]] = self.get("/api/cloud/jobs", limit=_PAGE, offset=offset, **query)["jobs"]
            yield from page
            offset += len(page)
            if len(page) < _PAGE:
                return

    def _again(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Tries again after a pause while nobody answers; the last answer or failure counts."""
        for pause_s in RETRY_PAUSES_S:
            try:
                response = self._client.request(method, path, **_given(arguments))
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol):
                    break  # nobody is there: waiting would only delay saying so
                time.sleep(pause_s)
                continue
            if response.status_code not in _RETRIED:
                return _check(response)
            time.sleep(pause_s)
        with _readable(self.url):
            return _check(self._client.request(method, path, **_given(arguments)))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _readable(url: str) -> Generator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise CliError(
            f"Tunewright does not answer at {url} ({error or type(error).__name__})",
            advice="Start it with `tunewright up`, or name another with --url or TUNEWRIGHT_URL.",
            code="unreachable",
        ) from error


def _check(response: httpx.Response) -> httpx.Response:
    """The response, or the CliError of its problem document."""
    if response.is_success:
        return response
    response.read()
    try:
        document: Any = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CliError(f"{response.request.url} answered {response.status_code}, and not as Tunewright does")
    raise from_problem(cast("dict[str, Any]", document), response.status_code)


def _parsed(lines: Iterator[str]) -> Iterator[ServerEvent]:
    event, id_, data = "message", None, list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield ServerEvent(event=event, data="\n".join(data), id=id_)
            event, data = "message", []
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            id_ = value


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, which no proxy stands before."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
