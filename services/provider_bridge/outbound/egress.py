"""The one way out: every call to a provider's HTTP API, with its proxy, its CA, its pace and its retries.

Reads are repeated on outages, within a budget, and wait as long as the provider asks (up to a cap). A call that may
have done something is sent once. What comes back is either a well-formed answer below 400 or one of the errors below.
"""

import email.utils
import hashlib
import http
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import httpx
import msgspec
import stamina
from aiolimiter import AsyncLimiter

from services.provider_bridge.outbound.ports import CredentialRefused, NoFunds
from shared.clock import Clock
from shared.problems import Unavailable
from shared.settings import Secret

T = TypeVar("T")

MAX_ANSWER_BYTES = 32 * 1024 * 1024
ASKED_FOR_NOTHING_S = 2
"""The `retry_after_s` of an outage that came without one."""
_COARSE_S = 2.0
"""The Date header knows whole seconds; less than this is no difference between two clocks."""
LONGEST_WAIT_S = 60.0
"""A provider that asks for more is unavailable: whoever waits must not hold up the others."""
_TRIES = 3
_BUDGET_S = 45.0
_EXCERPT_CHARS = 300
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How calls of one provider leave this machine."""

    proxy_url: str | None = None
    """`http://proxy:8080`, credentials included; None = none."""
    no_proxy: tuple[str, ...] = ()
    """Hosts that are called directly all the same, as in the variable NO_PROXY."""
    ca_bundle: str | None = None
    """A PEM file; None = the system's."""
    ssl_verify: bool = True
    timeout_s: float = 30.0

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS is checked by. Raises OSError or ssl.SSLError for a bundle that cannot be read."""
        context = ssl.create_default_context(cafile=self.ca_bundle)
        if not self.ssl_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """So many calls in so many seconds, of this process: all that call one address with one key keep it together."""

    calls: float
    per_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer below 400. `clock_ahead_s`: the provider's clock minus ours, as far as its Date header shows it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    clock_ahead_s: float

    def json(self) -> Any:
        """The body as JSON; None when empty. Raises Unavailable for what is none, such as a proxy's HTML page."""
        if not self.body.strip():
            return None
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the provider answered {_excerpt(self.body)!r} where JSON was due") from error

    def read(self, kind: type[T]) -> T:
        """The body as `kind`, further members ignored. Raises Unavailable for anything of another shape."""
        try:
            return msgspec.convert(self.json(), kind, strict=False)
        except msgspec.ValidationError as error:
            raise Unavailable(f"the provider's answer has another shape than documented: {error}") from error

    def ours(self, moment: datetime) -> datetime:
        """A moment of the provider's clock by ours."""
        return moment - timedelta(seconds=self.clock_ahead_s) if abs(self.clock_ahead_s) > _COARSE_S else moment


class VendorRefused(Exception):  # noqa: N818 - an answer, not an error
    """The provider said no, in its own words: a status from 400 to 499 that has no meaning of ours."""

    def __init__(self, status: int, content: Any, excerpt: str) -> None:
        super().__init__(f"{status}: {excerpt}")
        self.status = status
        self.content = content
        """The JSON of the body, None if it was none."""
        self.excerpt = excerpt


class Forbidden(CredentialRefused):
    """403: the key is known, and not allowed this. Some providers say so of what is not there, too."""

    content: Any = None
    """The JSON of the body, None if it was none."""


class Egress:
    """One provider's HTTP API under one credential."""

    def __init__(
        self,
        base_url: str,
        network: NetworkSettings,
        clock: Clock,
        *,
        headers: Mapping[str, Secret | str] | None = None,
        limits: tuple[RateLimit, ...] = (),
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._clock = clock
        plain = {
            name: value.reveal() if isinstance(value, Secret) else value for name, value in (headers or {}).items()
        }
        self._client = client_of(network, headers=plain)
        self.account = hashlib.sha256(msgspec.json.encode([self.base_url, sorted(plain.items())])).digest()
        """The same for all that call this address with these headers."""
        self._limiters = [limiter_of(self.account, limit) for limit in limits]

    async def get(self, path: str, *, params: Mapping[str, Any] | None = None) -> Answer:
        """A read. Raises as `call` does."""
        return await self.call("GET", path, params=params)

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeats: bool | None = None,
        answers: tuple[int, ...] = (),
    ) -> Answer:
        """One call; repeated on outages if `repeats` (by default: if its method changes nothing when repeated).

        The body is `json`, or `content` as it is. `answers` are statuses that the provider uses for answers, though
        they stand for errors elsewhere.

        Raises:
            Unavailable: no answer, a 5xx, a 429, or no HTTP that can be read.
            CredentialRefused: 401, or Forbidden for 403. NoFunds: 402. VendorRefused: any other 4xx.
        """
        request = self._client.build_request(
            method,
            f"{self.base_url}{path}",
            json=json,
            content=content,
            params=params,
            headers=dict(headers or {}),
        )
        if not (method in _IDEMPOTENT if repeats is None else repeats):
            return await self._once(request, answers)
        async for attempt in stamina.retry_context(
            on=_wait_of, attempts=_TRIES, timeout=_BUDGET_S, wait_initial=0.2, wait_max=LONGEST_WAIT_S
        ):
            with attempt:
                return await self._once(request, answers)
        raise AssertionError("stamina raises the last error")

    async def start(
        self, path: str, *, json: Any, check: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A POST that starts something: sent once, after `check`, which is asked when the call's turn has come.

        A call may wait long for its turn, and its right to start may be over by then. Raises as `call` and `check` do.
        """
        request = self._client.build_request("POST", f"{self.base_url}{path}", json=json, headers=dict(headers or {}))
        return await self._once(request, check=check)

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[httpx.Response]:
        """A read that goes on, such as server-sent events. Raises as `call` does."""
        async with AsyncExitStack() as stack:
            await self._pace(stack)
            self._require_open()
            request = self._client.build_request(
                "GET", f"{self.base_url}{path}", params=params, headers=dict(headers or {})
            )
            try:
                response = await self._client.send(request, stream=True)
                stack.push_async_callback(response.aclose)
                if response.is_error:
                    _raise_for(response, await response.aread())
                yield response
            except httpx.HTTPError as error:
                raise Unavailable(f"{request.url.host} does not answer: {type(error).__name__}") from error

    async def close(self) -> None:
        """Gives back connections."""
        await self._client.aclose()

    def _require_open(self) -> None:
        """Settings or keys may have been replaced in the middle of a step: the next one has the new ones."""
        if self._client.is_closed:
            raise Unavailable(f"{urlsplit(self.base_url).hostname} is asked with other settings from now on")

    async def _pace(self, stack: AsyncExitStack) -> None:
        for limiter in self._limiters:
            await stack.enter_async_context(limiter)

    async def _once(
        self, request: httpx.Request, answers: tuple[int, ...] = (), check: Callable[[], None] | None = None
    ) -> Answer:
        async with AsyncExitStack() as stack:
            await self._pace(stack)
            self._require_open()
            if check is not None:
                check()
            try:
                response = await self._client.send(request, stream=True)
                stack.push_async_callback(response.aclose)
                body = await _bounded(response)
            except httpx.HTTPError as error:
                # The address may hold a token; the host says enough.
                raise Unavailable(f"{request.url.host} does not answer: {type(error).__name__}") from error
        if response.is_error and response.status_code not in answers:
            _raise_for(response, body)
        if response.is_redirect:
            raise Unavailable(f"{request.url.host} sends us elsewhere, where our key does not go")
        return Answer(
            status=response.status_code,
            headers=dict(response.headers),
            body=body,
            clock_ahead_s=_ahead_s(response.headers.get("date"), self._clock()),
        )


_limiters: WeakValueDictionary[tuple[bytes, float, float], AsyncLimiter] = WeakValueDictionary()


def limiter_of(account: bytes, limit: RateLimit) -> AsyncLimiter:
    """The account's one limiter for this limit; it lives as long as anybody calls under it."""
    name = (account, limit.calls, limit.per_s)
    found = _limiters.get(name)
    if found is None:
        found = _limiters[name] = AsyncLimiter(limit.calls, limit.per_s)
    return found


def client_of(network: NetworkSettings, *, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    """A client that leaves by these settings; for vendors' clients that take one. It follows no redirect."""
    return httpx.AsyncClient(
        headers=dict(headers or {}),
        proxy=network.proxy_url,
        mounts=dict.fromkeys(_direct_hosts(network.no_proxy)),
        verify=network.ssl_context(),
        timeout=network.timeout_s,
        trust_env=False,  # the settings already hold what the environment says
    )


def _direct_hosts(no_proxy: tuple[str, ...]) -> list[str]:
    """The hosts of a NO_PROXY list as httpx writes patterns; networks are no hosts, and it knows none."""
    names = [entry.removeprefix("*").removeprefix(".") for entry in no_proxy if "/" not in entry and entry != "*"]
    return [pattern for name in names if name for pattern in (f"all://{name}", f"all://*.{name}")]


async def _bounded(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Unavailable(f"{response.request.url.host} answers more than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _raise_for(response: httpx.Response, body: bytes) -> None:
    status, host = response.status_code, response.request.url.host
    excerpt = _excerpt(body)
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        wait_s = _retry_after_s(response.headers.get("retry-after"))
        raise Unavailable(f"{host} answers {status}: {excerpt}", retry_after_s=wait_s)
    if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        kind = Forbidden if status == http.HTTPStatus.FORBIDDEN else CredentialRefused
        refused = kind(
            f"{host} refuses our credentials ({status}): {excerpt}",
            "Check the provider's key, what it is allowed to do, and whether it has expired.",
        )
        if isinstance(refused, Forbidden):
            refused.content = _json_of(body)
        raise refused
    if status == http.HTTPStatus.PAYMENT_REQUIRED:
        raise NoFunds(f"{host} wants money first: {excerpt}", "Add credit to the account, or choose another provider.")
    raise VendorRefused(status, _json_of(body), excerpt)


def _json_of(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _excerpt(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:_EXCERPT_CHARS]


def _retry_after_s(text: str | None) -> int:
    """Whole seconds that a Retry-After header asks for, given in seconds or as a date."""
    if text is None:
        return ASKED_FOR_NOTHING_S
    try:
        return max(0, round(float(text)))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return ASKED_FOR_NOTHING_S
    return max(0, round((until - datetime.now(UTC)).total_seconds()))


def _wait_of(error: Exception) -> bool | float:
    """Whether to try again, and after how long: as long as the provider asks, unless that is too long to wait for."""
    if not isinstance(error, Unavailable):
        return False
    if error.retry_after_s > LONGEST_WAIT_S:
        return False
    return float(error.retry_after_s) if error.retry_after_s > ASKED_FOR_NOTHING_S else True


def _ahead_s(date: str | None, now: datetime) -> float:
    if date is None:
        return 0.0
    try:
        return (email.utils.parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
