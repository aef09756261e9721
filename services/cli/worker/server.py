"""The gateway as a worker talks to it."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import msgspec

from services.cli.gateway import is_loopback
from services.cli.worker.token import TokenSource
from shared.contracts.worker import PING_S, WorkerJob

CONNECT_S = 10.0
ANSWER_S = 30.0
SILENCE_S = 3 * PING_S
"""A stream that does not even ping for so long is dead."""
_UNAUTHORIZED = 401
_SERVER_ERRORS = 500
_TRY_LATER = frozenset({408, 425, 429})


class ServerAway(Exception):  # noqa: N818 - a state of the world, not an error
    """Nobody answers, or not as Tunewright does: try again later."""


class TokenRefused(Exception):  # noqa: N818 - an answer, not an error
    """Our token is not the worker's present one."""


class ServerRefused(Exception):  # noqa: N818 - an answer, not an error
    """The server says no, and would say so again."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a registration."""

    worker_id: str
    sse_url: str
    resume_job: WorkerJob | None = None
    abandon_job: str | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the stream."""

    name: str
    data: bytes


class Server:
    """Requests to one gateway under one worker's token."""

    def __init__(self, url: str, token: TokenSource) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=not is_loopback(self.url),
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def register(self, body: dict[str, Any]) -> Registered:
        """Says what we are and which run we have."""
        return msgspec.json.decode(await self._post("/api/workers/register", body), type=Registered)

    async def beat(self, body: dict[str, Any]) -> str | None:
        """The job whose run we are to end, although we have it."""
        answer: Any = msgspec.json.decode(await self._post("/api/workers/heartbeat", body))
        return answer.get("abandon_job")

    async def report(self, job_id: str, attempt_id: UUID, status: str, **more: Any) -> None:
        """What became of a run."""
        body = {"status": status, "attempt_id": str(attempt_id), **more}
        await self._post(f"/api/workers/job/{job_id}/status", body)

    async def orders(self, path: str) -> AsyncGenerator[Order]:
        """What we are told, until the stream ends. Raises ServerAway when it breaks."""
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        try:
            async with self._client.stream("GET", path, headers=self._headers(), timeout=timeout) as answer:
                if not answer.is_success:
                    await answer.aread()
                _check(answer)
                async for order in _parsed(answer):
                    yield order
        except httpx.HTTPError as error:
            raise ServerAway(str(error) or type(error).__name__) from error

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        try:
            answer = await self._client.post(path, json=body, headers=self._headers())
        except httpx.HTTPError as error:
            raise ServerAway(str(error) or type(error).__name__) from error
        _check(answer)
        return answer.content

    def _headers(self) -> dict[str, str]:
        return {"X-Worker-Token": self._token.read()}


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    if answer.status_code == _UNAUTHORIZED:
        raise TokenRefused
    if answer.status_code >= _SERVER_ERRORS or answer.status_code in _TRY_LATER:
        raise ServerAway(f"it answers {answer.status_code}")
    try:
        document: Any = answer.json()
        code, detail = str(document["code"]), str(document["detail"])
    except (ValueError, LookupError, TypeError):
        raise ServerAway(f"it answers {answer.status_code}, and not as Tunewright does") from None
    raise ServerRefused(code, detail)


async def _parsed(answer: httpx.Response) -> AsyncGenerator[Order]:
    name, data = "message", list[str]()
    async for line in answer.aiter_lines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Order(name=name, data="\n".join(data).encode())
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
