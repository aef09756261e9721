"""The vendor's own client where it is sound: account, hardware, versions, the webhook secret and files.

It speaks through our egress, so proxy, CA, pace, time limits and retries are ours, and the key never enters it. Where
its strict models refuse what Replicate answers, the provider is Unavailable, as for any other answer that cannot be
read. Trainings and predictions go around it: docs/decisions/0023.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from replicate.client import Client
from replicate.version import Versions

from services.provider_bridge.outbound.egress import Egress
from services.provider_bridge.outbound.egress_transport import EgressTransport
from services.provider_bridge.outbound.ports import Account, StartRefused
from shared.contracts.provider import VersionView
from shared.problems import Unavailable

UPLOAD_LIMIT_BYTES = 100 * 1024 * 1024
_PREFIX = "/v1"
"""The client adds it to every path; our base address ends with it."""
_NO_KEY = "held-by-the-egress"
"""Given so that the client looks for no key of its own in the environment."""


class ReplicateClient:
    """The calls of `replicate` 1.x that we make."""

    def __init__(self, egress: Egress) -> None:
        self._client = Client(_NO_KEY, transport=EgressTransport(egress, _PREFIX))

    async def account(self) -> Account:
        """Whose key it is."""
        with _answers():
            account = await self._client.accounts.async_current()
            return Account(username=account.username, detail=f"{account.type}: {account.name}")

    async def skus(self) -> frozenset[str]:
        """The hardware that Replicate has, without prices."""
        with _answers():
            return frozenset(each.sku for each in await self._client.hardware.async_list())

    async def versions(self, model: str) -> list[VersionView]:
        """The newest versions of `owner/name`, newest first: one page."""
        with _answers():
            page = await Versions(self._client, model).async_list()
            return [
                VersionView(id=each.id, created_at=each.created_at.isoformat(), model_id=model) for each in page.results
            ]

    async def webhook_secret(self) -> str:
        """What the account's webhooks are signed with, now."""
        with _answers():
            return (await self._client.webhooks.default.async_secret()).key

    async def upload(self, path: Path) -> str:
        """The address of a file that trainings can take as input; Replicate keeps it for about a day.

        Raises StartRefused, before a byte is sent, for a file above 100 MiB.
        """
        size = (await asyncio.to_thread(path.stat)).st_size
        if size > UPLOAD_LIMIT_BYTES:
            raise StartRefused(
                f"{path.name} has {size} bytes; Replicate takes files up to {UPLOAD_LIMIT_BYTES} (100 MiB).",
                "Let the run fetch it from this gateway (TUNEWRIGHT_PUBLIC_URL), or put it behind a URL of its own.",
            )
        with _answers():
            return (await self._client.files.async_create(path)).urls["get"]


@contextmanager
def _answers() -> Generator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:  # its models are strict: a missing member, a new word, no JSON
        raise Unavailable(f"Replicate's answer is not what its client reads: {type(error).__name__}") from error
