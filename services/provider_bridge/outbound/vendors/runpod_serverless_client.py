"""The vendor's own client where it is sound: the endpoint's health and a job's cancel, on a session of ours.

Its session is given to it, so proxy, CA, time limit and the refusal of error statuses are ours; without the last it
reads `401` as a job. Starting and looking at jobs go around it: docs/decisions/0023.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import import_module
from types import ModuleType
from typing import Any

import aiohttp

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.ports import CredentialRefused
from services.provider_bridge.outbound.vendors.shapes import Object, an_object
from shared.problems import Unavailable
from shared.settings import Secret


class RunPodEndpoints:
    """Endpoints through `runpod.endpoint.asyncio`, which is imported at its first use: that takes seconds."""

    def __init__(self, api_url: str, key: Secret, network: NetworkSettings) -> None:
        self._api_url = api_url.rstrip("/")
        self._key = key
        self._network = network
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def health(self, endpoint_id: str) -> Object:
        """Jobs and workers by state. Raises CredentialRefused, Unavailable, LookupError for no such endpoint."""
        module = await _module()
        async with self._asking() as session:
            endpoint: Any = module.Endpoint(endpoint_id, session, api_key=self._key.reveal())
            endpoint.endpoint_url_base = self._api_url
            return an_object(await endpoint.health())

    async def cancel(self, ref: str) -> None:
        """Asks for the end of the job `endpoint/job`. Raises as `health` does; LookupError for no such job."""
        module = await _module()
        endpoint_id, _, job_id = ref.rpartition("/")
        headers = {"Authorization": f"Bearer {self._key.reveal()}", "Content-Type": "application/json"}
        async with self._asking() as session:
            job: Any = module.Job(endpoint_id, job_id, session, headers)
            job.endpoint_url_base = self._api_url
            await job.cancel()

    async def close(self) -> None:
        """Gives back connections; nothing is asked after it."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def _asking(self) -> AsyncGenerator[aiohttp.ClientSession]:
        network = self._network
        if self._is_closed:
            raise Unavailable("the provider was set up anew in the middle of a step")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=network.ssl_context()),
                timeout=aiohttp.ClientTimeout(total=network.timeout_s),
                proxy=network.proxy_url,
                raise_for_status=True,
                trust_env=False,
            )
        try:
            yield self._session
        except aiohttp.ClientResponseError as error:
            raise _meaning(error) from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: JSON that is none
            raise Unavailable(f"RunPod does not answer: {type(error).__name__}") from error


async def _module() -> ModuleType:
    return await asyncio.to_thread(import_module, "runpod.endpoint.asyncio")


def _meaning(error: aiohttp.ClientResponseError) -> Exception:
    if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return CredentialRefused(
            f"RunPod refuses our key ({error.status}).",
            "Check the provider's key, and that it may use this endpoint.",
        )
    if error.status == HTTPStatus.NOT_FOUND:
        return LookupError("RunPod does not know it")
    return Unavailable(f"RunPod answers {error.status}: {error.message}")
