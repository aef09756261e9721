"""Objects live in storage; their bytes pass through here in pieces, in both directions, and are never held whole."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

import httpx
import msgspec

from shared.problems import CODES, Rejected, Unavailable
from shared.settings import Secret

PASSED_UP = ("content-type", "content-length", "x-content-sha256", "if-none-match", "if-match", "range", "if-range")
PASSED_DOWN = (
    "content-type",
    "content-length",
    "content-range",
    "accept-ranges",
    "etag",
    "last-modified",
    "x-content-sha256",
)
TIMEOUTS = httpx.Timeout(60.0, connect=3.0, read=120.0, pool=10.0)
LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=20)
ERROR_BYTES = 64 * 1024
CHUNK_BYTES = 256 * 1024


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What storage answered to an upload or a list: its JSON and the headers a client may see."""

    body: Any
    headers: dict[str, str]


class OpenObject:
    """An answer whose bytes have not been read yet; close it whatever happens."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = _kept(response.headers, PASSED_DOWN)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The bytes as they come; the connection is given back at the end, also when the reader goes away."""
        try:
            async for chunk in self._response.aiter_raw(CHUNK_BYTES):
                yield chunk
        finally:
            await self._response.aclose()

    async def close(self) -> None:
        """Gives the connection back without reading the bytes."""
        await self._response.aclose()


class ObjectStore:
    """Storage's HTTP interface on loopback, under the gateway's own token."""

    def __init__(self, url: str, token: Secret) -> None:
        headers = {"Authorization": f"Bearer {token.reveal()}", "Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUTS, limits=LIMITS, trust_env=False, follow_redirects=False
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def put(
        self, place: str, content: AsyncIterator[bytes], given: Mapping[str, str], extra: Mapping[str, str]
    ) -> StoredAnswer:
        """Streams an object to `place`; returns after storage has verified and recorded it.

        Raises Rejected as storage refuses, Unavailable when it does not answer; what `content` raises comes through.
        """
        headers = {**_kept(given, PASSED_UP), **extra}
        try:
            response = await self._client.put(_path(place), content=content, headers=headers)
        except httpx.TransportError as error:
            raise _away(error) from error
        return StoredAnswer(body=_answer(response), headers=_kept(response.headers, ("etag", "x-content-sha256")))

    async def read_json(self, place: str, query: Mapping[str, str]) -> Any:
        """A list that storage answers as JSON."""
        try:
            response = await self._client.get(_path(place), params=query)
        except httpx.TransportError as error:
            raise _away(error) from error
        return _answer(response)

    async def open(self, method: str, place: str, given: Mapping[str, str]) -> OpenObject:
        """Starts to read an object, or (HEAD) asks about it; 206, 304 and 416 come back as they are."""
        headers = _kept(given, ("range", "if-range", "if-none-match", "if-match"))
        request = self._client.build_request(method, _path(place), headers=headers)
        try:
            response = await self._client.send(request, stream=True)
            if response.is_error and response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                await _read_error(response)
                raise _refusal(response)
        except httpx.TransportError as error:
            raise _away(error) from error
        return OpenObject(response)


def _path(place: str) -> str:
    return "/" + quote(place, safe="/")


def _kept(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


def _answer(response: httpx.Response) -> Any:
    if response.is_error:
        raise _refusal(response)
    try:
        return msgspec.json.decode(response.content)
    except msgspec.DecodeError as error:
        raise Unavailable("storage answered something that is not JSON") from error


async def _read_error(response: httpx.Response) -> None:
    """Keeps a refusal's body, as far as it is of a refusal's size."""
    try:
        if int(response.headers.get("content-length", "0")) <= ERROR_BYTES:
            await response.aread()
    finally:
        await response.aclose()


def _refusal(response: httpx.Response) -> Rejected | Unavailable:
    said = _said(response)
    code = str(said.get("code"))
    if code in CODES and code != "service_unavailable":
        return Rejected(code, str(said.get("detail") or CODES[code]))
    if response.status_code == HTTPStatus.NOT_FOUND:
        return Rejected("object_not_found", "there is no such object")
    return Unavailable(f"storage answered {response.status_code}")


def _said(response: httpx.Response) -> dict[str, Any]:
    if not response.is_stream_consumed:
        return {}
    try:
        said: Any = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}


def _away(error: httpx.TransportError) -> Unavailable:
    return Unavailable(f"storage does not answer ({type(error).__name__})")
