"""Events written to `provider-<uuid5 of its name>` streams, and the commands about providers. Owner: provider-bridge.

No event and no answer holds a secret: a credential is known by its name and by the first characters of its digest.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.job import Event
from shared.contracts.offers import Offer

BreakerState = Literal["closed", "open", "half_open"]


class ProviderConfigured(Event, frozen=True, kw_only=True, tag="provider.configured.v1"):
    """Settings were changed; `settings` are all of them afterwards, none of them secret."""

    provider: str
    settings: dict[str, Any]
    changed: list[str]
    configured_at: datetime


class ProviderCredentialStored(Event, frozen=True, kw_only=True, tag="provider.credential_stored.v1"):
    """A credential was given to us and is kept encrypted outside of the log. `user_id` None: for everybody."""

    provider: str
    credential: str
    user_id: str | None
    fingerprint: str
    """The first 12 hex digits of an HMAC of it under a key of this installation: tells two apart, and nothing else."""
    stored_at: datetime


class ProviderCredentialRemoved(Event, frozen=True, kw_only=True, tag="provider.credential_removed.v1"):
    """A credential that was given to us is forgotten."""

    provider: str
    credential: str
    user_id: str | None
    removed_at: datetime


class ProviderBreakerMoved(Event, frozen=True, kw_only=True, tag="provider.breaker_moved.v1"):
    """From now on calls are let through (closed), refused until `retry_at` (open), or tried one by one (half_open)."""

    provider: str
    state: BreakerState
    failures: int
    """In a row, when it opened."""
    reason: str
    retry_at: datetime | None
    moved_at: datetime


class ProviderSuspended(Event, frozen=True, kw_only=True, tag="provider.suspended.v1"):
    """No new run is placed there until somebody resumes it or `until` has passed: no money left, or a refused key."""

    provider: str
    kind: Literal["no_funds", "credentials_refused"]
    message: str
    until: datetime
    suspended_at: datetime


class ProviderOffersPublished(Event, frozen=True, kw_only=True, tag="provider.offers_published.v1"):
    """What can be had there now and at which price; written when it differs from what was written last."""

    provider: str
    offers: list[Offer]
    published_at: datetime


class ProviderOrphanFound(Event, frozen=True, kw_only=True, tag="provider.orphan_found.v1"):
    """A run of ours lives that no attempt of the log stands for. It is ended from here on."""

    provider: str
    ref: str
    attempt_id: UUID
    epoch: int
    why: Literal["unknown_attempt", "attempt_ended", "second_run"]
    price_micro_usd_per_hour: int
    started_at: datetime
    """As the provider says, else when it was found."""
    found_at: datetime


class ProviderOrphanEnded(Event, frozen=True, kw_only=True, tag="provider.orphan_ended.v1"):
    """The orphan is confirmed gone, and these were its seconds. `job_id` None: nobody's, so the operator's."""

    provider: str
    ref: str
    attempt_id: UUID
    job_id: UUID | None
    seconds: int
    price_micro_usd_per_hour: int
    ended_at: datetime


class ProviderWebhookRefused(Event, frozen=True, kw_only=True, tag="provider.webhook_refused.v1"):
    """Somebody sent what may not be believed. Refusals of one minute, address and reason are one event."""

    provider: str
    reason: Literal["ip_not_allowed", "invalid_signature", "stale_timestamp", "replayed", "unreadable"]
    source_ip: str | None
    refused_at: datetime


class ProviderWebhookUnmatched(Event, frozen=True, kw_only=True, tag="provider.webhook_unmatched.v1"):
    """A genuine webhook about a run that no attempt of ours stands for. It moves nothing."""

    provider: str
    webhook_id: str
    ref: str
    word: str
    received_at: datetime


ProviderEvent = (
    ProviderConfigured
    | ProviderCredentialStored
    | ProviderCredentialRemoved
    | ProviderBreakerMoved
    | ProviderSuspended
    | ProviderOffersPublished
    | ProviderOrphanFound
    | ProviderOrphanEnded
    | ProviderWebhookRefused
    | ProviderWebhookUnmatched
)


class BreakerView(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker as it is shown."""

    state: BreakerState
    failures: int = 0
    retry_at: datetime | None = None
