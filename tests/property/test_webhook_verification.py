"""A webhook is believed as it was sent, and refused if a single byte of it was touched on the way."""

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.provider_bridge.outbound.ports import Tag, WebhookRefused
from services.provider_bridge.outbound.vendors import replicate_webhooks, runpod_serverless_webhooks
from shared.settings import Secret

NOW = datetime(2026, 11, 29, 1, 0, tzinfo=UTC)
KEY = f"whsec_{base64.b64encode(bytes(range(24))).decode()}"
OTHER = f"whsec_{base64.b64encode(bytes(range(24, 48))).decode()}"
INSTALLATION = "0a1b2c3d"
SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")

ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=30)
ages = st.integers(-300, 300)


def signed(webhook_id: str, age_s: int, run_id: str, status: str, key: str = KEY) -> tuple[dict[str, str], bytes]:
    body = json.dumps({"id": run_id, "status": status, "logs": "…"}).encode()
    stamp = str(int((NOW - timedelta(seconds=age_s)).timestamp()))
    content = f"{webhook_id}.{stamp}.".encode() + body
    proof = base64.b64encode(hmac.digest(base64.b64decode(key[6:]), content, sha256)).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{proof}"}, body


def touched(text: bytes, place: int, flip: int) -> bytes:
    place %= len(text)
    return text[:place] + bytes([text[place] ^ flip]) + text[place + 1 :]


@given(ids, ages, ids, ids)
def test_replicates_webhook_is_believed_as_it_was_sent(webhook_id: str, age_s: int, run_id: str, status: str) -> None:
    headers, body = signed(webhook_id, age_s, run_id, status)
    read = replicate_webhooks.verify(headers, body, [OTHER, KEY], NOW)
    assert (read.id, read.status) == (run_id, status)


@given(ids, ages, st.sampled_from(SIGNED), st.integers(0, 10_000), st.integers(1, 127))
def test_replicates_webhook_with_one_touched_byte_in_its_headers_is_refused(
    webhook_id: str, age_s: int, name: str, place: int, flip: int
) -> None:
    headers, body = signed(webhook_id, age_s, "run", "succeeded")
    headers[name] = touched(headers[name].encode(), place, flip).decode("latin-1")
    with pytest.raises(WebhookRefused):
        replicate_webhooks.verify(headers, body, [KEY], NOW)


@given(ids, ages, st.integers(0, 10_000), st.integers(1, 255))
def test_replicates_webhook_with_one_touched_byte_in_its_body_is_refused(
    webhook_id: str, age_s: int, place: int, flip: int
) -> None:
    headers, body = signed(webhook_id, age_s, "run", "succeeded")
    with pytest.raises(WebhookRefused):
        replicate_webhooks.verify(headers, touched(body, place, flip), [KEY], NOW)


@given(st.integers(301, 10**8).flatmap(lambda age: st.sampled_from([age, -age])))
def test_replicates_webhook_is_stale_outside_of_five_minutes(age_s: int) -> None:
    headers, body = signed("x", age_s, "run", "succeeded")
    with pytest.raises(WebhookRefused) as refused:
        replicate_webhooks.verify(headers, body, [KEY], NOW)
    assert refused.value.reason == "stale_timestamp"


def test_replicates_webhook_is_believed_by_any_signature_of_the_list_and_by_no_other_version() -> None:
    headers, body = signed("x", 0, "run", "succeeded")
    good = headers["webhook-signature"]
    headers["webhook-signature"] = f"v1,AAAA v1a,zz nonsense {good}"
    assert replicate_webhooks.verify(headers, body, [KEY], NOW).id == "run"
    headers["webhook-signature"] = good.replace("v1,", "v2,")
    with pytest.raises(WebhookRefused):
        replicate_webhooks.verify(headers, body, [KEY], NOW)
    with pytest.raises(WebhookRefused):
        replicate_webhooks.verify(headers, body, [], NOW)


@given(st.uuids(), st.integers(1, 99), ids)
def test_runpods_webhook_is_believed_with_the_secret_of_its_run(attempt_id: UUID, epoch: int, job_id: str) -> None:
    label = Tag(attempt_id=attempt_id, epoch=epoch).label(INSTALLATION)
    query = runpod_serverless_webhooks.secret_query(Secret("key"), label)
    body = json.dumps({"id": job_id, "status": "COMPLETED"}).encode()
    note = runpod_serverless_webhooks.verify(
        query, body, key=Secret("key"), installation=INSTALLATION, endpoint_id="ep"
    )
    assert (note.ref, note.attempt_id, note.word) == (f"ep/{job_id}", attempt_id, "COMPLETED")


@given(st.uuids(), st.sampled_from(["label", "proof"]), st.integers(0, 10_000), st.integers(1, 127))
def test_runpods_webhook_with_one_touched_byte_in_its_address_is_refused(
    attempt_id: UUID, name: str, place: int, flip: int
) -> None:
    label = Tag(attempt_id=attempt_id, epoch=1).label(INSTALLATION)
    query = runpod_serverless_webhooks.secret_query(Secret("key"), label)
    query[name] = touched(query[name].encode(), place, flip).decode("latin-1")
    with pytest.raises(WebhookRefused):
        runpod_serverless_webhooks.verify(
            query, b'{"id":"j","status":"COMPLETED"}', key=Secret("key"), installation=INSTALLATION, endpoint_id="ep"
        )
