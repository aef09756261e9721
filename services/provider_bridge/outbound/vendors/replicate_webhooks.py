"""Whether a webhook comes from Replicate: signed with the account's secret, not long ago.

The vendor's client has a check too, and takes signatures of any version, bytes that base64 ignores, and the machine's
own clock; ours takes none of them. Both agree on every genuine webhook (tests/unit/provider_bridge/test_replicate.py).
"""

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID

import msgspec

from services.provider_bridge.outbound.ports import WebhookRefused
from services.provider_bridge.outbound.vendors.shapes import a_text, an_object

REPLAY_WINDOW = timedelta(seconds=300)
KEPT_SECRETS = 2
"""The present one and the one before it: both are good while a rotation gets about."""
RENEW_EVERY = timedelta(seconds=300)
RENEW_AFTER_MISMATCH = timedelta(seconds=10)
"""A signature that no secret fits makes the next look at the provider fetch the secret anew, this often at most."""


class Told(msgspec.Struct, frozen=True):
    """What is read of a webhook's body: a training or prediction as GET shows it."""

    id: str
    status: str
    input: object = None

    @property
    def label(self) -> str:
        """The run's label, empty if the body does not hold it."""
        return a_text(an_object(self.input).get("label"))


class WebhookSecrets:
    """The account's signing secrets, newest first, and when they are to be fetched again."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._asked_at: datetime | None = None
        self._missed = False

    @property
    def keys(self) -> tuple[str, ...]:
        """`whsec_…`, newest first."""
        return tuple(self._keys)

    def is_due(self, now: datetime) -> bool:
        """Whether the secret is to be fetched: never asked, long ago, or a signature did not fit."""
        if self._asked_at is None:
            return True
        return now - self._asked_at >= (RENEW_AFTER_MISMATCH if self._missed else RENEW_EVERY)

    def asked(self, now: datetime) -> None:
        """It is being fetched; if that fails, the next try comes as late as after a success."""
        self._asked_at, self._missed = now, False

    def learned(self, key: str) -> None:
        """What the provider says the secret is."""
        self._keys = [key, *(known for known in self._keys if known != key)][:KEPT_SECRETS]

    def missed(self) -> None:
        """A signature fitted no secret: it may have been rotated."""
        self._missed = True


def verify(headers: Mapping[str, str], body: bytes, keys: Iterable[str], now: datetime) -> Told:
    """What a genuine webhook tells; `now` by the provider's clock.

    Raises WebhookRefused: `invalid_signature`, `stale_timestamp`, or `unreadable` for a body that is signed and odd.
    """
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    given = headers.get("webhook-signature", "").split()
    if not (webhook_id and re.fullmatch(r"[0-9]{1,12}", timestamp) and given):
        raise WebhookRefused("invalid_signature", "it is not signed")
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    # Every secret against every signature, in constant time each: how long it takes tells nothing of either.
    fits = [hmac.compare_digest(_sign(key, signed), each.encode()) for key in keys for each in given]
    if not any(fits):
        raise WebhookRefused("invalid_signature", "no signature fits the account's secret")
    if abs(now.timestamp() - int(timestamp)) > REPLAY_WINDOW.total_seconds():
        raise WebhookRefused("stale_timestamp", f"it was signed more than {REPLAY_WINDOW.seconds} s away from now")
    try:
        return msgspec.json.decode(body, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WebhookRefused("unreadable", f"its body is no run: {error}") from error


def attempt_in(query: Mapping[str, str]) -> UUID | None:
    """The attempt that our webhook's address names."""
    try:
        return UUID(query.get("attempt", ""))
    except ValueError:
        return None


def _sign(key: str, content: bytes) -> bytes:
    try:
        secret = base64.b64decode(key.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        return b""  # a secret that is none fits nothing
    return b"v1," + base64.b64encode(hmac.digest(secret, content, sha256))
