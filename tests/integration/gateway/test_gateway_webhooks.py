"""Webhooks over HTTP: believed only when genuine, written down once, and never more than a hint."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.clock import utc_now
from shared.contracts import catalogue
from shared.contracts.attempt import AttemptCancelled, AttemptWebhookReceived, CancelAttempt, RequestAttempt
from shared.contracts.provider import ProviderWebhookRefused, ProviderWebhookUnmatched
from shared.ids import new_id
from tests.integration.gateway.conftest import OpenSite, Site
from tests.simulators.loopback import Answer, Call, Loopback
from tests.simulators.replicate import DESTINATION, KEY, TRAINER, Replicate, Run
from tests.support.waiting import eventually

MIB = 1024 * 1024
HOOK = "/api/webhooks/replicate"


@pytest.fixture
def replicate() -> Iterator[Replicate]:
    with Replicate() as simulator:
        yield simulator


@pytest.fixture
async def here(open_site: OpenSite, replicate: Replicate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A site with a Replicate of its own, which reaches the gateway."""
    for name, value in (
        ("REPLICATE_API_TOKEN", KEY),
        ("HOME", str(tmp_path)),
        ("TUNEWRIGHT_PROVIDER_REPLICATE_API_URL", replicate.api_url),
        ("TUNEWRIGHT_PROVIDER_REPLICATE_MODEL", TRAINER),
        ("TUNEWRIGHT_PROVIDER_REPLICATE_DESTINATION", DESTINATION),
    ):
        monkeypatch.setenv(name, value)
    return await open_site("provider_bridge", is_public=True, gateway_trusted_proxies="127.0.0.1")


async def running(site: Site, replicate: Replicate) -> tuple[UUID, UUID, Run]:
    """An attempt, its job and its run at the provider, which the bridge has started."""
    attempt_id, job_id = new_id(), new_id()
    command = RequestAttempt(
        attempt_id=attempt_id,
        job_id=job_id,
        attempt_number=1,
        provider="replicate",
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        price_micro_usd_per_hour=0,
    )
    sender = site.runtimes["gateway"].sender
    await sender.send("provider_bridge", command, correlation_id=job_id, actor="system:test")

    async def accepted() -> bool:
        return any(name == "attempt.accepted.v1" for name, _ in await story(site, attempt_id))

    await eventually(accepted)
    return attempt_id, job_id, replicate.of(attempt_id.hex)[-1]


async def story(site: Site, attempt_id: UUID) -> list[tuple[str, Any]]:
    recorded = await site.runtimes["gateway"].store.read_stream(f"attempt-{attempt_id}")
    return [(event.type, catalogue.decode(event)) for event in recorded]


async def heard(site: Site, attempt_id: UUID) -> list[AttemptWebhookReceived]:
    return [event for _, event in await story(site, attempt_id) if isinstance(event, AttemptWebhookReceived)]


async def of_provider(site: Site, kind: type[Any]) -> list[Any]:
    recorded = await site.runtimes["gateway"].store.read(categories=["provider"])
    return [event for event in map(catalogue.decode, recorded) if isinstance(event, kind)]


async def send(site: Site, body: bytes, headers: dict[str, str], **more: Any) -> Any:
    return await site.http.post(HOOK, content=body, headers={"content-type": "application/json", **headers}, **more)


async def test_the_providers_own_webhook_reaches_the_attempt(here: Site, replicate: Replicate) -> None:
    """Sent by the simulator itself, to the address that the bridge gave it."""
    attempt_id, _, run = await running(here, replicate)
    replicate.begin(run)

    async def told() -> bool:
        return [one.word for one in await heard(here, attempt_id)] == ["processing"]

    await eventually(told)


async def test_a_repeat_is_noted_once_and_a_stranger_is_noted_beside(here: Site, replicate: Replicate) -> None:
    attempt_id, job_id, run = await running(here, replicate)
    body = json.dumps(replicate.shown_run(run)).encode()
    headers = replicate.sign(body)
    first, again = await send(here, body, headers), await send(here, body, headers)
    assert first.json() == {"status": "received", "job_id": str(job_id), "updates": {}}
    assert again.json() == {"status": "ignored", "job_id": str(job_id), "reason": "duplicate"}
    assert len([one for one in await heard(here, attempt_id) if one.webhook_id == headers["webhook-id"]]) == 1
    unknown = json.dumps({**replicate.shown_run(run), "id": "somebodyelses", "input": {}}).encode()
    signed = replicate.sign(unknown)
    for _ in range(2):
        answer = await send(here, unknown, signed, params={"attempt": str(attempt_id)})
        assert answer.json() == {"status": "ignored", "reason": "no job_id"}
    (noted,) = await of_provider(here, ProviderWebhookUnmatched)
    assert noted.ref.endswith("somebodyelses")


async def test_a_late_webhook_is_kept_and_moves_nothing(here: Site, replicate: Replicate) -> None:
    attempt_id, job_id, run = await running(here, replicate)
    sender = here.runtimes["gateway"].sender
    await sender.send(
        "provider_bridge", CancelAttempt(attempt_id=attempt_id, reason="test"), correlation_id=job_id, actor="test"
    )

    async def over() -> bool:
        if run.status in {"starting", "processing"}:
            return False
        return any(isinstance(event, AttemptCancelled) for _, event in await story(here, attempt_id))

    replicate.cancelled(run)
    await eventually(over)
    body = json.dumps({**replicate.shown_run(run), "status": "succeeded"}).encode()
    headers = replicate.sign(body)
    answer = await send(here, body, headers)
    assert answer.json()["status"] == "received"
    events = [event for _, event in await story(here, attempt_id)]
    assert [one.word for one in events if isinstance(one, AttemptWebhookReceived)][-1] == "succeeded"
    assert len([one for one in events if isinstance(one, AttemptCancelled)]) == 1


async def test_what_is_not_genuine_is_refused_and_written_down(here: Site, replicate: Replicate) -> None:
    _, _, run = await running(here, replicate)
    body = json.dumps(replicate.shown_run(run)).encode()
    good = replicate.sign(body)
    old = replicate.sign(body, at=utc_now() - timedelta(minutes=6))
    for headers, content in (({}, body), (good, body + b" "), (old, body)):
        answer = await send(here, content, headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")
    unreadable = await send(here, b"[]", replicate.sign(b"[]"))
    assert (unreadable.status_code, unreadable.json()["code"]) == (400, "invalid_payload")
    refused = await of_provider(here, ProviderWebhookRefused)
    assert {one.reason for one in refused} == {"invalid_signature", "stale_timestamp", "unreadable"}
    assert {one.source_ip for one in refused} == {"127.0.0.1"}


async def test_only_listed_addresses_may_send_and_no_header_of_theirs_helps(here: Site, replicate: Replicate) -> None:
    """The operations guide: an address outside `webhook_allowed_ips` is 403, an empty list lets everybody through."""
    _, _, run = await running(here, replicate)
    body = json.dumps(replicate.shown_run(run)).encode()
    setting = "/api/cloud/providers/replicate"
    await here.http.put(setting, json={"webhook_allowed_ips": ["10.0.0.0/8", "1.2.3.4/32"]})
    for forwarded, status in (("10.1.2.3", 200), ("1.2.3.4", 200), ("8.8.8.8", 403), ("10.1.2.3, 8.8.8.8", 403)):
        answer = await send(here, body, {**replicate.sign(body), "x-forwarded-for": forwarded})
        assert answer.status_code == status, forwarded
    refused = await of_provider(here, ProviderWebhookRefused)
    assert {(one.reason, one.source_ip) for one in refused} == {("ip_not_allowed", "8.8.8.8")}
    await here.http.put(setting, json={"webhook_allowed_ips": []})
    assert (await send(here, body, replicate.sign(body))).status_code == 200


async def test_ten_megabytes_are_taken_and_more_is_not(here: Site, replicate: Replicate) -> None:
    _, job_id, run = await running(here, replicate)
    small = len(json.dumps(replicate.shown_run(run)).encode())
    body = json.dumps({**replicate.shown_run(run), "logs": "x" * (10 * MIB - small - 64)}).encode()
    answer = await send(here, body, replicate.sign(body))
    assert answer.json() == {"status": "received", "job_id": str(job_id), "updates": {}}
    larger = body + b" " * MIB
    assert (await send(here, larger, replicate.sign(larger))).status_code == 413


async def test_the_public_address_is_tested_and_private_ones_are_not_called(here: Site) -> None:
    for path in ("test-webhook", "test-webhook-external"):
        answer = (await here.http.post(f"/api/cloud/providers/replicate/{path}")).json()
        assert (answer["success"], answer["error"]) == (False, _NOT_PUBLIC)
    for url in ("http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x", "http://2130706433/", "ftp://a/b"):
        answer = (await here.http.post("/api/webhooks/test", json={"webhook_url": url})).json()
        assert (answer["success"], answer["status_code"]) == (False, None), url


_NOT_PUBLIC = "it leads to an address that is not public; the operator may allow it in TUNEWRIGHT_PRIVATE_NETWORKS"


async def test_allowed_networks_are_called_and_their_answers_status_is_told(open_site: OpenSite) -> None:
    site = await open_site("provider_bridge", is_public=True, tunewright_private_networks="127.0.0.0/8")

    def route(call: Call) -> Answer:
        return Answer(202 if call.json()["type"] == "test" else 500, {"secret": "of the receiver"})

    with Loopback(route) as receiver:
        asked = {"webhook_url": f"{receiver.url}/hook?token=sesame", "provider": "replicate", "timeout": 5}
        told = await site.http.post("/api/webhooks/test", json=asked)
    assert (told.json()["success"], told.json()["status_code"], told.json()["method"]) == (True, 202, "direct")
    assert "of the receiver" not in told.text
    assert (await site.http.post("/api/webhooks/test", json={**asked, "method": "replicate_cog"})).status_code == 400
    own = await site.http.post("/api/cloud/providers/replicate/test-webhook")
    assert (own.json()["success"], own.json()["message"]) == (True, "it answered 200")
    external = (await site.http.post("/api/cloud/providers/replicate/test-webhook-external")).json()
    assert (external["success"], external["status_code"], external["prediction_id"]) == (True, 200, None)
