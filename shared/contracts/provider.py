"""Events written to `provider-<uuid5 of its name>` streams, and the commands about providers. Owner: provider-bridge.

No event and no answer holds a secret: a credential is known by its name and by the first characters of its digest.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.job import Command, Event
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


class CredentialFieldView(msgspec.Struct, frozen=True, kw_only=True):
    """One secret that a provider wants. `source`: where the one for everybody is from; None = it is not there."""

    name: str
    variable: str
    required: bool
    source: str | None = None


class NetworkView(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider's calls leave, in the documented names; a proxy's user and password are not shown."""

    ssl_verify: bool = True
    ssl_ca_bundle: str | None = None
    proxy_url: str | None = None
    http_timeout: float = 30.0


class ProviderView(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as the bridge knows it. `problems` are why it is not set up, or not wholly."""

    name: str
    title: str
    description: str
    configured: bool
    problems: list[str] = []
    credentials: list[CredentialFieldView] = []
    settings: dict[str, Any] = {}
    """What is in force, by name: stored over environment over defaults."""
    stored: dict[str, Any] = {}
    """What was set by API."""
    default_hardware: str = ""
    offers: list[Offer] = []
    """What it offers; of one that is not set up, what it is known to have."""
    breaker: BreakerView = BreakerView(state="closed")
    suspended: ProviderSuspended | None = None
    capabilities: dict[str, Any] = {}
    network: NetworkView | None = None
    """None: it makes no calls."""


class CredentialView(msgspec.Struct, frozen=True, kw_only=True):
    """A credential that was given to us by API, without itself."""

    id: int
    provider: str
    credential_name: str
    user_id: str | None
    description: str | None
    created_at: datetime
    updated_at: datetime
    problem: str | None = None
    """Why it cannot be used."""


class RotatedView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one stored secret."""

    provider: str
    credential_name: str
    status: Literal["rotated", "failed"]
    error: str | None = None


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a provider takes our key; `source` says where the key is from."""

    valid: bool
    username: str | None = None
    detail: str | None = None
    source: str | None = None
    error: str | None = None


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the model that trains at a provider."""

    id: str
    created_at: str | None
    model_id: str


# ---- commands; the subject is cmd.provider_bridge.<tag> --------------------------------------------------------------


class ReadProviders(Command, frozen=True, kw_only=True, tag="read_providers"):
    """Answers `{"providers": [ProviderView]}`: all, or the one of that name. Refuses with `provider_not_found`."""

    provider: str | None = None
    user_id: str | None = None
    """With own keys a user may have a provider that nobody else has."""
    only_configured: bool = False
    """Refuses with `provider_not_configured` if the one that is named is not set up."""


class ConfigureProvider(Command, frozen=True, kw_only=True, tag="configure_provider"):
    """Changes settings; None takes one back to what it is by itself. Refuses with every fault at once.

    Answers with the provider's view.
    """

    provider: str
    changes: dict[str, Any]


class StoreProviderCredential(Command, frozen=True, kw_only=True, tag="store_credential"):
    """Puts a secret away, in place of an older one of that name. `credential` None: the only one it wants.

    Answers with its view. The secret is in no repr.
    """

    provider: str
    value: str
    credential: str | None = None
    user_id: str | None = None
    description: str | None = None

    def __repr__(self) -> str:
        return f"StoreProviderCredential({self.provider}, {self.credential}, {self.user_id})"


class RemoveProviderCredential(Command, frozen=True, kw_only=True, tag="remove_credential"):
    """Forgets a secret that was given to us. `credential` None: all.

    Refuses with `not_found` if there is none, and with `credential_in_use` while runs need it, unless forced.
    """

    provider: str
    credential: str | None = None
    user_id: str | None = None
    force: bool = False


class ReadProviderCredentials(Command, frozen=True, kw_only=True, tag="read_credentials"):
    """Answers `{"credentials": [CredentialView]}`: a user's, everybody's (`user_id` None), or all there are."""

    user_id: str | None = None
    provider: str | None = None
    of_all: bool = False


class RotateProviderCredentials(Command, frozen=True, kw_only=True, tag="rotate_credentials"):
    """Encrypts a user's stored secrets anew under the present key. Answers `{"credentials": [RotatedView]}`."""

    user_id: str | None = None
    provider: str | None = None


class ReadProviderAccount(Command, frozen=True, kw_only=True, tag="read_provider_account"):
    """Asks the provider whose key it is. Answers an AccountView, whatever it says."""

    provider: str
    user_id: str | None = None


class ReadProviderBalance(Command, frozen=True, kw_only=True, tag="read_provider_balance"):
    """Asks the provider what is left. Answers `{"balance_micro_usd": int | None, "note": str}`."""

    provider: str
    user_id: str | None = None


class ReadProviderVersions(Command, frozen=True, kw_only=True, tag="read_provider_versions"):
    """Answers `{"versions": [VersionView], "current": str | None}`; a provider without versions answers none."""

    provider: str
    model_id: str | None = None
    user_id: str | None = None


class ReceiveWebhook(Command, frozen=True, kw_only=True, tag="receive_webhook"):
    """What came to `/api/webhooks/<provider>`, as it came; header names in lower case.

    Answers `{"status": "received" | "ignored", "job_id": str | None, "reason": str | None}`. Refuses with
    `provider_not_found`, `ip_not_allowed`, `invalid_signature` or `invalid_payload`.
    """

    provider: str
    source_ip: str | None
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes
