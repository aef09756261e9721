"""What routes ask the bridge about providers. The bridge answers from its log, or from the provider itself."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from services.gateway.administration import Component
from services.gateway.domain.job_metrics import metrics_response
from services.gateway.domain.provider_body import CostEstimateResponse, cost_estimate
from services.gateway.handlers import Principal
from services.gateway.reads import JobReads
from shared.contracts.envelope import CommandReply
from shared.contracts.job import Command
from shared.contracts.provider import (
    AccountView,
    ConfigureProvider,
    CredentialView,
    ProviderView,
    ReadProviderAccount,
    ReadProviderBalance,
    ReadProviderCredentials,
    ReadProviders,
    ReadProviderVersions,
    ReceiveWebhook,
    RemoveProviderCredential,
    RotatedView,
    RotateProviderCredentials,
    StoreProviderCredential,
    VersionView,
)
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.problems import Unavailable

OWNER = "provider_bridge"
BUILT_IN = frozenset({"local", "worker", "auto"})
"""Providers that need no keys: whether they can be used is nothing to ask."""
LOOK_UP_S = 20.0
"""A bridge that was told of a change looks into every source of secrets before it answers."""
ASK_PROVIDER_S = 60.0
"""The bridge asks somebody else, with retries."""
ESTIMATE_DAYS = 30
PROBE_S = 10.0


class ProviderDesk:
    """Each method is one command to the bridge. Raises Rejected as the bridge does, Unavailable when none answers."""

    def __init__(self, sender: CommandSender, reads: JobReads) -> None:
        self._sender = sender
        self._reads = reads

    async def all(self, principal: Principal) -> list[ProviderView]:
        """Every provider."""
        reply = await self._send(ReadProviders(user_id=principal.user_id), principal)
        return msgspec.convert(reply.data["providers"], list[ProviderView])

    async def one(self, name: str, principal: Principal) -> ProviderView:
        """One of them; refuses with `provider_not_found`."""
        reply = await self._send(ReadProviders(provider=name, user_id=principal.user_id), principal)
        return msgspec.convert(reply.data["providers"][0], ProviderView)

    async def configure(self, name: str, changes: dict[str, Any], principal: Principal) -> ProviderView:
        """Changes settings."""
        command = ConfigureProvider(provider=name, changes=changes)
        reply = await self._send(command, principal, timeout_s=LOOK_UP_S)
        return msgspec.convert(reply.data, ProviderView)

    async def store(
        self,
        name: str,
        value: str,
        principal: Principal,
        *,
        credential: str | None = None,
        user_id: str | None = None,
        description: str | None = None,
    ) -> CredentialView:
        """Puts a key away; `user_id` None: for everybody."""
        command = StoreProviderCredential(
            provider=name, value=value, credential=credential, user_id=user_id, description=description
        )
        reply = await self._send(command, principal, timeout_s=LOOK_UP_S)
        return msgspec.convert(reply.data, CredentialView)

    async def remove(
        self,
        name: str,
        principal: Principal,
        *,
        credential: str | None = None,
        user_id: str | None = None,
        force: bool = False,
    ) -> None:
        """Forgets a key; refuses with `not_found`, and with `credential_in_use` unless forced."""
        command = RemoveProviderCredential(provider=name, credential=credential, user_id=user_id, force=force)
        await self._send(command, principal, timeout_s=LOOK_UP_S)

    async def rotate(self, principal: Principal, *, user_id: str, provider: str | None) -> list[RotatedView]:
        """Encrypts a user's keys anew."""
        command = RotateProviderCredentials(user_id=user_id, provider=provider)
        reply = await self._send(command, principal, timeout_s=LOOK_UP_S)
        return msgspec.convert(reply.data["credentials"], list[RotatedView])

    async def credentials(
        self, principal: Principal, *, user_id: str | None = None, provider: str | None = None, of_all: bool = False
    ) -> list[CredentialView]:
        """Stored keys without themselves."""
        command = ReadProviderCredentials(user_id=user_id, provider=provider, of_all=of_all)
        reply = await self._send(command, principal)
        return msgspec.convert(reply.data["credentials"], list[CredentialView])

    async def account(self, name: str, principal: Principal) -> AccountView:
        """Whether the provider takes our key."""
        command = ReadProviderAccount(provider=name, user_id=principal.user_id)
        reply = await self._send(command, principal, timeout_s=ASK_PROVIDER_S)
        return msgspec.convert(reply.data, AccountView)

    async def balance(self, name: str, principal: Principal) -> tuple[int | None, str]:
        """What is left there in micro-dollars, and what to know about it."""
        command = ReadProviderBalance(provider=name, user_id=principal.user_id)
        reply = await self._send(command, principal, timeout_s=ASK_PROVIDER_S)
        return reply.data["balance_micro_usd"], reply.data["note"]

    async def versions(
        self, name: str, model_id: str | None, principal: Principal
    ) -> tuple[list[VersionView], str | None]:
        """Versions of the model that trains there, and the one that is fixed."""
        command = ReadProviderVersions(provider=name, model_id=model_id, user_id=principal.user_id)
        reply = await self._send(command, principal, timeout_s=ASK_PROVIDER_S)
        return msgspec.convert(reply.data["versions"], list[VersionView]), reply.data["current"]

    async def receive(self, webhook: ReceiveWebhook, principal: Principal) -> dict[str, Any]:
        """Hands a webhook over as it came."""
        return (await self._send(webhook, principal, timeout_s=LOOK_UP_S)).data

    async def require_configured(self, name: str, principal: Principal) -> None:
        """Refuses with `provider_not_configured` while the provider's keys are not there."""
        if name in BUILT_IN:
            return
        await self._send(ReadProviders(provider=name, user_id=principal.user_id, only_configured=True), principal)

    async def estimate(self, name: str, hardware: str | None, principal: Principal) -> CostEstimateResponse:
        """What a job may cost there, going by those that ended in the last 30 days."""
        view = await self.one(name, principal)
        seen = metrics_response(await self._reads.sums(ESTIMATE_DAYS), ESTIMATE_DAYS).by_provider.get(name)
        return cost_estimate(view, hardware, None if seen is None else seen.avg_job_duration_seconds)

    async def health(self, principal: Principal, *, only: str | None = None) -> list[Component]:
        """Each provider whose keys are there, asked now; and whether every place where keys are kept can be read."""
        try:
            views = await self.all(principal)
        except Unavailable as away:
            return [Component(name="secrets", status="degraded", message=away.detail)]
        wanted = [view for view in views if view.credentials and only in {None, view.name}]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._probed(view.name, principal)) for view in wanted if view.configured]
        return [secrets_component(wanted), *(task.result() for task in asked)]

    async def _probed(self, name: str, principal: Principal) -> Component:
        started = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_S):
                account = await self.account(name, principal)
        except (Unavailable, TimeoutError):
            return Component(name=f"provider:{name}", status="degraded", message="it does not answer")
        return Component(
            name=f"provider:{name}",
            status="healthy" if account.valid else "degraded",
            latency_ms=round((time.monotonic() - started) * 1000, 3),
            message="it takes our key" if account.valid else account.error,
        )

    async def _send(self, command: Command, principal: Principal, *, timeout_s: float = 5.0) -> CommandReply:
        return await self._sender.send(
            OWNER,
            command,
            correlation_id=new_id(),
            actor=principal.actor,
            source_ip=principal.source_ip,
            timeout_s=timeout_s,
        )


def secrets_component(views: Sequence[ProviderView]) -> Component:
    """Whose keys are there, and what hinders us from reading others."""
    there = [view.name for view in views if view.configured]
    hindered = [problem for view in views for problem in view.problems if "cannot be read" in problem]
    told = f"keys of {', '.join(there)} are there" if there else "no provider's key is set"
    return Component(
        name="secrets",
        status="degraded" if hindered else "healthy",
        message="; ".join([told, *dict.fromkeys(hindered)]),
    )
