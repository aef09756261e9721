"""RunPod signs no webhook. Ours carry a secret of their own in the address, made of the key and the run's label.

Nothing is stored: whoever has the key can check it. The body stays unproven, so it is a hint and no more.
"""

import hmac
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from services.provider_bridge.outbound.ports import Tag, WebhookNote, WebhookRefused
from shared.settings import Secret

_PURPOSE = b"tunewright: webhook of the run "


class Told(msgspec.Struct, frozen=True):
    """What is read of the body: the status object of a job."""

    id: str
    status: str


def secret_query(key: Secret, label: str) -> dict[str, str]:
    """What a genuine webhook of the run has in its address."""
    proof = hmac.digest(key.reveal().encode(), _PURPOSE + label.encode(), sha256).hex()
    return {"label": label, "proof": proof}


def with_secret(url: str, key: Secret, label: str) -> str:
    """The webhook's address for one run."""
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query), *secret_query(key, label).items()])
    return urlunsplit(parts._replace(query=query))


def verify(query: Mapping[str, str], body: bytes, *, key: Secret, installation: str, endpoint_id: str) -> WebhookNote:
    """What a webhook is about. Raises WebhookRefused."""
    label = query.get("label", "")
    due = secret_query(key, label)["proof"]
    if not hmac.compare_digest(due.encode(), query.get("proof", "").encode()):
        raise WebhookRefused("invalid_signature", "its address does not hold the run's secret")
    tag = Tag.parse(label, installation)
    if tag is None:
        raise WebhookRefused("invalid_signature", "it is about no run of this installation")
    try:
        told = msgspec.json.decode(body, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WebhookRefused("unreadable", f"its body is no job: {error}") from error
    return WebhookNote(
        webhook_id=f"{told.id}:{told.status}",
        ref=f"{endpoint_id}/{told.id}",
        word=told.status,
        attempt_id=tag.attempt_id,
    )
