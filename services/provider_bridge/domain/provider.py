"""The provider decider: what a provider's stream remembers, and when something about it is worth an event. Pure.

The breaker counts in the caller's process; only its moves are events, so every replica and every restart sees them:
closed -(FAILURES in a row)-> open -(OPEN_FOR passed)-> half_open -(SUCCESSES in a row)-> closed, or back to open.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from shared.contracts.job import Event
from shared.contracts.offers import Offer
from shared.contracts.provider import (
    BreakerView,
    ProviderBreakerMoved,
    ProviderConfigured,
    ProviderCredentialRemoved,
    ProviderCredentialStored,
    ProviderOffersPublished,
    ProviderOrphanEnded,
    ProviderOrphanFound,
    ProviderSuspended,
    ProviderWebhookRefused,
    ProviderWebhookUnmatched,
)

FAILURES = 5
SUCCESSES = 2
OPEN_FOR = timedelta(seconds=60)
SUSPENDED_FOR = timedelta(hours=1)
"""After so long money or a key may have come that nobody told us of: one job finds out."""
_KEPT_NOTES = 256


# ---- commands, with the moment bound in ------------------------------------------------------------------------------


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Every command names its provider."""

    provider: str


class Configure(About, frozen=True, kw_only=True):
    """All settings as they are to be, checked before."""

    settings: dict[str, Any]
    at: datetime


class StoreCredential(About, frozen=True, kw_only=True):
    """A secret was put away under this name; `user_id` None: for everybody."""

    credential: str
    user_id: str | None
    fingerprint: str
    at: datetime


class RemoveCredential(About, frozen=True, kw_only=True):
    """The secret of this name was forgotten."""

    credential: str
    user_id: str | None
    at: datetime


class CountFailures(About, frozen=True, kw_only=True):
    """So many calls in a row got no answer."""

    failures: int
    reason: str
    at: datetime


class CountSuccesses(About, frozen=True, kw_only=True):
    """So many calls in a row were answered."""

    successes: int
    at: datetime


class TryAgain(About, frozen=True, kw_only=True):
    """A call is wanted although the breaker is open."""

    at: datetime


class Suspend(About, frozen=True, kw_only=True):
    """The provider wants money, or another key."""

    kind: Literal["no_funds", "credentials_refused"]
    message: str
    at: datetime


class PublishOffers(About, frozen=True, kw_only=True):
    """What it offers now."""

    offers: list[Offer]
    at: datetime


class FindOrphan(About, frozen=True, kw_only=True):
    """A living run that no attempt stands for."""

    ref: str
    attempt_id: UUID
    epoch: int
    why: Literal["unknown_attempt", "attempt_ended", "second_run"]
    price_micro_usd_per_hour: int
    started_at: datetime | None
    at: datetime


class EndOrphan(About, frozen=True, kw_only=True):
    """The orphan is confirmed gone."""

    ref: str
    job_id: UUID | None
    ended_at: datetime
    billed_s: float | None


class RefuseWebhook(About, frozen=True, kw_only=True):
    """A webhook was turned away."""

    reason: Literal["ip_not_allowed", "invalid_signature", "stale_timestamp", "replayed", "unreadable"]
    source_ip: str | None
    at: datetime


class NoteUnmatchedWebhook(About, frozen=True, kw_only=True):
    """A genuine webhook belongs to no attempt of ours."""

    webhook_id: str
    ref: str
    word: str
    at: datetime


ProviderCommand = (
    Configure
    | StoreCredential
    | RemoveCredential
    | CountFailures
    | CountSuccesses
    | TryAgain
    | Suspend
    | PublishOffers
    | FindOrphan
    | EndOrphan
    | RefuseWebhook
    | NoteUnmatchedWebhook
)


class ProviderState(msgspec.Struct, frozen=True, kw_only=True):
    """One provider as its stream tells it. `notes` are what keeps repeats of webhooks from being written again."""

    settings: Mapping[str, Any] = {}
    credentials: Mapping[tuple[str, str | None], str] = {}
    """Name and user of each secret that was given to us -> its fingerprint."""
    breaker: BreakerView = BreakerView(state="closed")
    suspended: ProviderSuspended | None = None
    offers: tuple[Offer, ...] | None = None
    orphans: Mapping[str, ProviderOrphanFound] = {}
    notes: tuple[str, ...] = ()

    def suspended_at(self, moment: datetime) -> ProviderSuspended | None:
        """Why nothing new is placed there at that moment, if so."""
        return self.suspended if self.suspended is not None and moment < self.suspended.until else None


def evolve(state: ProviderState, event: Event) -> ProviderState:  # noqa: PLR0911 - one arm for each event
    """The provider after one more event."""
    match event:
        case ProviderConfigured():
            return replace(state, settings=event.settings, suspended=None)
        case ProviderCredentialStored() | ProviderCredentialRemoved():
            return _with_credential(state, event)
        case ProviderBreakerMoved():
            breaker = BreakerView(state=event.state, failures=event.failures, retry_at=event.retry_at)
            return replace(state, breaker=breaker)
        case ProviderSuspended():
            return replace(state, suspended=event)
        case ProviderOffersPublished():
            return replace(state, offers=tuple(event.offers))
        case ProviderOrphanFound() | ProviderOrphanEnded():
            return _with_orphan(state, event)
        case ProviderWebhookRefused() | ProviderWebhookUnmatched():
            return _noted(state, event)
        case _:
            return state


def _with_credential(
    state: ProviderState, event: ProviderCredentialStored | ProviderCredentialRemoved
) -> ProviderState:
    key = (event.credential, event.user_id)
    others = {known: value for known, value in state.credentials.items() if known != key}
    if isinstance(event, ProviderCredentialRemoved):
        return replace(state, credentials=others)
    return replace(state, credentials={**others, key: event.fingerprint}, suspended=None)


def _with_orphan(state: ProviderState, event: ProviderOrphanFound | ProviderOrphanEnded) -> ProviderState:
    orphans = {ref: orphan for ref, orphan in state.orphans.items() if ref != event.ref}
    if isinstance(event, ProviderOrphanFound):
        orphans[event.ref] = event
    return replace(state, orphans=orphans)


def _noted(state: ProviderState, event: ProviderWebhookRefused | ProviderWebhookUnmatched) -> ProviderState:
    match event:
        case ProviderWebhookRefused():
            note = _refusal_note(event.reason, event.source_ip, event.refused_at)
        case ProviderWebhookUnmatched():
            note = event.webhook_id
    return replace(state, notes=(*state.notes, note)[-_KEPT_NOTES:])


def decide(state: ProviderState, command: ProviderCommand) -> Sequence[Event]:  # noqa: PLR0911 - one arm for each command
    """The events that the command adds, none if it tells nothing new."""
    match command:
        case Configure():
            return _configure(state, command)
        case StoreCredential() | RemoveCredential():
            return _credential(state, command)
        case CountFailures() | CountSuccesses() | TryAgain():
            return _breaker(state, command)
        case Suspend():
            return _suspend(state, command)
        case PublishOffers():
            if state.offers == tuple(command.offers):
                return []
            offers = ProviderOffersPublished(provider=command.provider, offers=command.offers, published_at=command.at)
            return [offers]
        case FindOrphan():
            return _find_orphan(state, command)
        case EndOrphan():
            return _end_orphan(state, command)
        case RefuseWebhook() | NoteUnmatchedWebhook():
            return _webhook(state, command)
        case _:
            assert_never(command)


def _configure(state: ProviderState, command: Configure) -> Sequence[Event]:
    names = {*state.settings, *command.settings}
    changed = sorted(name for name in names if state.settings.get(name) != command.settings.get(name))
    if not changed:
        return []
    return [
        ProviderConfigured(
            provider=command.provider, settings=command.settings, changed=changed, configured_at=command.at
        )
    ]


def _credential(state: ProviderState, command: StoreCredential | RemoveCredential) -> Sequence[Event]:
    match command:
        case StoreCredential():
            stored = ProviderCredentialStored(
                provider=command.provider,
                credential=command.credential,
                user_id=command.user_id,
                fingerprint=command.fingerprint,
                stored_at=command.at,
            )
            return (
                [] if state.credentials.get((command.credential, command.user_id)) == command.fingerprint else [stored]
            )
        case RemoveCredential():
            removed = ProviderCredentialRemoved(
                provider=command.provider,
                credential=command.credential,
                user_id=command.user_id,
                removed_at=command.at,
            )
            return [removed] if (command.credential, command.user_id) in state.credentials else []
        case _:
            assert_never(command)


def _breaker(state: ProviderState, command: CountFailures | CountSuccesses | TryAgain) -> Sequence[Event]:
    breaker = state.breaker
    match command:
        case CountFailures():
            tolerated = FAILURES if breaker.state == "closed" else 1
            if breaker.state == "open" or command.failures < tolerated:
                return []
            retry_at = command.at + OPEN_FOR
            return [_moved(command, "open", command.reason, command.failures, retry_at)]
        case CountSuccesses():
            if breaker.state != "half_open" or command.successes < SUCCESSES:
                return []
            return [_moved(command, "closed", f"{command.successes} calls in a row were answered")]
        case TryAgain():
            if breaker.state != "open" or breaker.retry_at is None or command.at < breaker.retry_at:
                return []
            return [_moved(command, "half_open", "its time is over: calls try whether it is back")]
        case _:
            assert_never(command)


def _moved(
    command: CountFailures | CountSuccesses | TryAgain,
    to: Literal["closed", "open", "half_open"],
    reason: str,
    failures: int = 0,
    retry_at: datetime | None = None,
) -> Event:
    return ProviderBreakerMoved(
        provider=command.provider, state=to, failures=failures, reason=reason, retry_at=retry_at, moved_at=command.at
    )


def _suspend(state: ProviderState, command: Suspend) -> Sequence[Event]:
    known = state.suspended_at(command.at)
    if known is not None and known.kind == command.kind:
        return []
    return [
        ProviderSuspended(
            provider=command.provider,
            kind=command.kind,
            message=command.message,
            until=command.at + SUSPENDED_FOR,
            suspended_at=command.at,
        )
    ]


def _find_orphan(state: ProviderState, command: FindOrphan) -> Sequence[Event]:
    if command.ref in state.orphans:
        return []
    return [
        ProviderOrphanFound(
            provider=command.provider,
            ref=command.ref,
            attempt_id=command.attempt_id,
            epoch=command.epoch,
            why=command.why,
            price_micro_usd_per_hour=command.price_micro_usd_per_hour,
            started_at=min(command.started_at or command.at, command.at),
            found_at=command.at,
        )
    ]


def _end_orphan(state: ProviderState, command: EndOrphan) -> Sequence[Event]:
    orphan = state.orphans.get(command.ref)
    if orphan is None:
        return []
    measured_s = (command.ended_at - orphan.started_at).total_seconds()
    return [
        ProviderOrphanEnded(
            provider=command.provider,
            ref=orphan.ref,
            attempt_id=orphan.attempt_id,
            job_id=command.job_id,
            seconds=max(0, round(measured_s if command.billed_s is None else command.billed_s)),
            price_micro_usd_per_hour=orphan.price_micro_usd_per_hour,
            ended_at=command.ended_at,
        )
    ]


def _webhook(state: ProviderState, command: RefuseWebhook | NoteUnmatchedWebhook) -> Sequence[Event]:
    match command:
        case RefuseWebhook():
            note = _refusal_note(command.reason, command.source_ip, command.at)
            event: Event = ProviderWebhookRefused(
                provider=command.provider, reason=command.reason, source_ip=command.source_ip, refused_at=command.at
            )
        case NoteUnmatchedWebhook():
            note = command.webhook_id
            event = ProviderWebhookUnmatched(
                provider=command.provider,
                webhook_id=command.webhook_id,
                ref=command.ref,
                word=command.word,
                received_at=command.at,
            )
        case _:
            assert_never(command)
    return [] if note in state.notes else [event]


def _refusal_note(reason: str, source_ip: str | None, at: datetime) -> str:
    return f"{reason} {source_ip} {at:%Y-%m-%dT%H:%M}"
