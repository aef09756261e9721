"""Webhooks of providers: whether one is to be believed, and whom it concerns. It is a hint to look, and moves nothing.

Asked in this order: may this address send any, is it signed by the provider, is there such a run. What is refused or
unknown is on the provider's stream, what is genuine on the attempt's; a repeat is written down once.
"""

import asyncpg
import structlog

from services.provider_bridge.attempt_stream import ACTOR, ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import NoteWebhook
from services.provider_bridge.domain.attempt_states import Absent, Forestalled, provider_ref_of, run_of
from services.provider_bridge.domain.provider import NoteUnmatchedWebhook, RefuseWebhook
from services.provider_bridge.outbound.directory import ConfiguredProviders
from services.provider_bridge.outbound.ports import Provider, WebhookNote, WebhookRefused
from services.provider_bridge.provider_stream import ProviderStreams
from services.provider_bridge.queries import QUERIES
from shared.clock import Clock
from shared.contracts.attempt import AttemptRequested
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata
from shared.contracts.provider import ReceiveWebhook
from shared.decider import execute, fold
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage
from shared.problems import Rejected

log = structlog.stdlib.get_logger()

_CODES = {
    "invalid_signature": "invalid_signature",
    "stale_timestamp": "invalid_signature",
    "replayed": "invalid_signature",
    "unreadable": "invalid_payload",
}


class WebhookHandlers:
    """Answers as soon as the hint is in the log; the run is looked at afterwards."""

    def __init__(
        self,
        store: EventStore,
        pool: asyncpg.Pool,
        streams: ProviderStreams,
        providers: ConfiguredProviders,
        clock: Clock,
    ) -> None:
        self._store = store
        self._pool = pool
        self._streams = streams
        self._providers = providers
        self._clock = clock

    async def receive(self, command: ReceiveWebhook, envelope: CommandEnvelope) -> CommandReply:
        """Refuses with `ip_not_allowed`, `invalid_signature` or `invalid_payload`; see ReceiveWebhook for answers."""
        senders = [one for one in self._providers.known() if one.name == command.provider]
        standing = self._providers.standing(command.provider)
        if standing is None and not senders:
            raise Rejected("provider_not_found", f"there is no provider {command.provider[:64]!r}")
        if standing is not None and not standing.settings.common.allows_sender(command.source_ip):
            detail = f"{command.source_ip} is not in webhook_allowed_ips of {command.provider}"
            raise await self._refusal(command, envelope, "ip_not_allowed", "ip_not_allowed", detail)
        try:
            note = _verified(senders, command)
        except WebhookRefused as refused:
            raise await self._refusal(
                command, envelope, refused.reason, _CODES[refused.reason], refused.detail
            ) from refused
        return await self._take(command.provider, note, envelope)

    async def _take(self, provider: str, note: WebhookNote, envelope: CommandEnvelope) -> CommandReply:
        asked = await self._attempt_of(provider, note)
        meta = EventMetadata(actor=ACTOR, causation_id=envelope.command_id, source_ip=envelope.source_ip)
        if asked is None:
            unmatched = NoteUnmatchedWebhook(
                provider=provider, webhook_id=note.webhook_id, ref=note.ref, word=note.word, at=self._clock()
            )
            done = await self._streams.execute(provider, unmatched, meta=meta)
            log.info("bridge.webhook.unmatched", provider=provider, ref=note.ref)
            return _answer(done.position, "ignored", reason="no job_id")
        stream, request = asked
        hint = NoteWebhook(webhook_id=note.webhook_id, word=note.word, at=self._clock())
        noted = await execute(self._store, ATTEMPT, stream, hint, meta=meta, correlation_id=request.job_id)
        if not noted.events:
            return _answer(noted.position, "ignored", job_id=str(request.job_id), reason="duplicate")
        return _answer(noted.position, "received", job_id=str(request.job_id))

    async def _attempt_of(self, provider: str, note: WebhookNote) -> tuple[str, AttemptRequested] | None:
        """The stream and request of the attempt that the note is about; None if there is none at this provider."""
        attempt_id = note.attempt_id
        if attempt_id is None:
            with unavailable_on_outage("find attempt"):
                attempt_id = await self._pool.fetchval(QUERIES.attempt_of_ref, provider, note.ref)
        if attempt_id is None:
            return None
        stream = attempt_stream(attempt_id)
        state = fold(ATTEMPT, await self._store.read_stream(stream))
        if isinstance(state, Absent | Forestalled):
            return None
        run = run_of(state)
        known = provider_ref_of(run)
        # The address that a webhook was sent to is not signed, what it says is: they must speak of one run.
        if run.request.provider != provider or (known is not None and known != note.ref):
            return None
        return stream, run.request

    async def _refusal(
        self, command: ReceiveWebhook, envelope: CommandEnvelope, reason: str, code: str, detail: str
    ) -> Rejected:
        refused = RefuseWebhook(
            provider=command.provider,
            reason=reason,  # pyright: ignore[reportArgumentType] - one of WebhookRefused's, or ip_not_allowed
            source_ip=command.source_ip,
            at=self._clock(),
        )
        meta = EventMetadata(actor=ACTOR, causation_id=envelope.command_id, source_ip=envelope.source_ip)
        await self._streams.execute(command.provider, refused, meta=meta)
        log.warning("bridge.webhook.refused", provider=command.provider, reason=reason, source_ip=command.source_ip)
        return Rejected(code, detail, provider=command.provider)


def _verified(senders: list[Provider], command: ReceiveWebhook) -> WebhookNote:
    """What the webhook says, to whichever account's secret it fits. Raises the first account's WebhookRefused."""
    first: WebhookRefused | None = None
    for sender in senders:
        try:
            return sender.verify_webhook(command.headers, command.query, command.body)
        except WebhookRefused as refused:
            first = first or refused
    raise first or WebhookRefused("invalid_signature", f"{command.provider} is not set up here: nothing can be checked")


def _answer(position: int, status: str, *, job_id: str | None = None, reason: str | None = None) -> CommandReply:
    return CommandReply(position=position, data={"status": status, "job_id": job_id, "reason": reason})
