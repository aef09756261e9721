"""Providers over HTTP: each documented line, through the real gateway and bridge, with Replicate on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.contracts import catalogue
from shared.contracts.provider import ProviderOffersPublished
from tests.integration.gateway.conftest import OpenSite, Site
from tests.simulators.replicate import DESTINATION, KEY, TRAINER, Replicate
from tests.support.waiting import eventually


@pytest.fixture
def replicate() -> Iterator[Replicate]:
    with Replicate() as simulator:
        yield simulator


@pytest.fixture
async def here(open_site: OpenSite, replicate: Replicate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A site whose Replicate is the simulator, by the operator's variables; it has no key yet."""
    for name in ("REPLICATE_API_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "VAULT_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNEWRIGHT_PROVIDER_REPLICATE_API_URL", replicate.api_url)
    monkeypatch.setenv("TUNEWRIGHT_PROVIDER_REPLICATE_MODEL", TRAINER)
    monkeypatch.setenv("TUNEWRIGHT_PROVIDER_REPLICATE_DESTINATION", DESTINATION)
    return await open_site("provider_bridge")


async def provider(site: Site, name: str = "replicate") -> dict[str, Any]:
    answer = await site.http.get("/api/cloud/providers")
    assert answer.status_code == 200, answer.text
    return next(one for one in answer.json()["providers"] if one["id"] == name)


async def store_key(site: Site, key: str = KEY) -> None:
    answer = await site.http.put("/api/cloud/providers/replicate/token", json={"api_token": key})
    assert answer.json() == {"success": True, "file_path": None, "error": None}, answer.text


async def provider_events(site: Site) -> list[Any]:
    """What people and vendors did to the providers; what those offer meanwhile is another matter."""
    recorded = await site.runtimes["gateway"].store.read(categories=["provider"])
    told = [catalogue.decode(event) for event in recorded]
    return [event for event in told if not isinstance(event, ProviderOffersPublished)]


async def test_the_list_shows_what_is_set_up_and_what_is_not_and_why(here: Site) -> None:
    local, replicate = await provider(here, "local"), await provider(here)
    assert local["configured"] is True
    assert (replicate["configured"], replicate["coming_soon"]) == (False, False)
    assert "REPLICATE_API_TOKEN is not set" in replicate["problems"][0]
    profiles = {one["id"]: one for one in replicate["hardware_profiles"]}
    documented = {"h100", "h100-x2", "h100-x4", "h100-x8", "l40s", "l40s-x2", "l40s-x4", "l40s-x8"}
    assert documented <= profiles.keys()
    assert profiles["h100"]["cost_per_second"] == pytest.approx(0.001525)
    assert (profiles["h100-x2"]["hardware_type"], profiles["h100-x2"]["gpu_count"]) == ("gpu-h100-2x", 2)


async def test_a_key_that_is_stored_is_in_force_at_once_and_shown_nowhere(here: Site) -> None:
    await store_key(here)
    assert (await provider(here))["configured"] is True
    valid = (await here.http.get("/api/cloud/providers/replicate/validate")).json()
    assert (valid["valid"], valid["error"], valid["token_source"]) == (True, None, "stored by API")
    assert valid["user_info"]["username"]
    shown = [
        (await here.http.get(path)).text
        for path in (
            "/api/cloud/providers",
            "/api/cloud/providers/replicate",
            "/api/cloud/providers/replicate/config",
            "/api/cloud/providers/replicate/advanced",
        )
    ]
    stored = [bytes(event.data).decode() for event in await here.runtimes["gateway"].store.read()]
    assert not [text for text in (*shown, *stored) if KEY in text]
    assert (await here.http.delete("/api/cloud/providers/replicate/token")).json()["success"] is True
    assert (await provider(here))["configured"] is False
    assert (await here.http.delete("/api/cloud/providers/replicate/token")).status_code == 404
    kinds = [type(event).__name__ for event in await provider_events(here)]
    assert kinds[:2] == ["ProviderCredentialStored", "ProviderCredentialRemoved"]


async def test_a_key_that_the_provider_does_not_take_is_told_in_its_words(here: Site) -> None:
    await store_key(here, "r8_wrong")
    told = (await here.http.get("/api/cloud/providers/replicate/validate")).json()
    assert (told["valid"], told["user_info"], told["token_source"]) == (False, None, "stored by API")
    assert "refuses our credentials" in told["error"]
    assert "r8_wrong" not in told["error"]


async def test_versions_and_billing_answer_and_without_a_key_say_401(here: Site) -> None:
    for path in ("versions", "billing"):
        refused = await here.http.get(f"/api/cloud/providers/replicate/{path}")
        assert (refused.status_code, refused.json()["code"]) == (401, "provider_not_configured")
    await store_key(here)
    versions = (await here.http.get("/api/cloud/providers/replicate/versions")).json()
    assert versions["versions"][0]["full_version"] == f"{TRAINER}:{versions['versions'][0]['id']}"
    billing = (await here.http.get("/api/cloud/providers/replicate/billing")).json()
    assert (billing["balance"], billing["default_hardware"]) == (None, "gpu-h100")
    assert "no billing endpoint" in billing["balance_note"]


@pytest.mark.parametrize("path", ["/api/cloud/providers/replicate", "/api/cloud/providers/replicate/config"])
async def test_settings_are_kept_under_both_documented_paths(here: Site, path: str) -> None:
    """REPLICATE.md and the operations guide: `PUT /api/cloud/providers/{provider}`."""
    body = {"webhook_allowed_ips": ["34.82.0.0/16", "35.185.0.0/16"], "cost_limit_amount": 100, "http_timeout": 60.0}
    answer = await here.http.put(path, json=body)
    assert answer.status_code == 200, answer.text
    config = (await here.http.get(path)).json()
    assert {name: config["config"][name] for name in body} == body
    assert config["stored"] == sorted(body)
    advanced = (await here.http.get("/api/cloud/providers/replicate/advanced")).json()
    assert (advanced["http_timeout"], advanced["webhook_ip_allowlist_enabled"]) == (60.0, True)
    taken_back = await here.http.put(path, json={"http_timeout": None})
    assert taken_back.json()["config"]["http_timeout"] is None
    assert taken_back.json()["config"]["cost_limit_amount"] == 100


async def test_every_fault_of_settings_is_named_and_nothing_is_kept(here: Site) -> None:
    body = {
        "proxy_url": "http://ann:sesame@proxy:8080",
        "http_timeout": -1,
        "webhook_allowed_ips": ["everybody"],
        "ssl_ca_bundle": "/nowhere/ca.pem",
        "ssl_verify": False,
        "webhook_require_signature": False,
        "api_url": "http://api.example.com",
        "colour": "blue",
        "cost_limit_period": "hourly",
    }
    answer = await here.http.put("/api/cloud/providers/replicate", json=body)
    assert answer.status_code == 400
    assert {error["field"] for error in answer.json()["errors"]} == body.keys()
    assert "sesame" not in answer.text
    assert await provider_events(here) == []
    config = (await here.http.get("/api/cloud/providers/replicate")).json()
    assert config["stored"] == []


async def test_checks_of_certificates_go_off_only_with_an_acknowledgement(here: Site) -> None:
    path = "/api/cloud/providers/replicate/advanced"
    refused = await here.http.patch(path, json={"ssl_verify": False})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "ssl_verify")
    off = await here.http.patch(path, json={"ssl_verify": False, "ssl_verify_acknowledged": True})
    assert off.json()["ssl_verify"] is False
    on = await here.http.put(path, json={"ssl_verify": True})
    assert on.json()["ssl_verify"] is True
    again = await here.http.patch(path, json={"ssl_verify": False})
    assert again.status_code == 400, "an acknowledgement is of one decision"


async def test_hardware_prices_and_breakers_are_told(here: Site) -> None:
    options = (await here.http.get("/api/cloud/hardware-options")).json()
    prices = {one["id"]: one["cost_per_second"] for one in options["hardware"]}
    assert (prices["gpu-l40s"], prices["gpu-h100"]) == (0.000975, 0.001525)
    estimate = await here.http.post("/api/cloud/cost-estimate?provider=replicate&hardware=l40s", json=[])
    assert (estimate.json()["has_estimate"], estimate.json()["hardware_cost_per_hour"]) == (False, 3.51)
    for path in ("/api/cloud/circuit-breakers", "/api/metrics/circuit-breakers"):
        shown = (await here.http.get(path)).json()
        assert shown["total"] == len(shown["circuit_breakers"]) >= 2
        assert {one["state"] for one in shown["circuit_breakers"]} == {"closed"}


async def test_a_job_for_a_provider_without_keys_is_refused_with_what_to_do(here: Site) -> None:
    answer = await here.http.post("/api/cloud/jobs/submit?provider=replicate", json=here.body())
    assert (answer.status_code, answer.json()["code"]) == (422, "provider_not_configured")
    assert answer.json()["variables"] == ["REPLICATE_API_TOKEN"]
    assert answer.json()["endpoint"] == "/api/cloud/providers/replicate/token"
    assert (await here.http.get("/api/cloud/jobs")).json()["total"] == 0


async def test_a_provider_that_nobody_knows_is_not_found(here: Site) -> None:
    for method, path in (
        ("GET", "/api/cloud/providers/nobody/config"),
        ("GET", "/api/cloud/providers/nobody/validate"),
        ("POST", "/api/training/deploy/nobody"),
        ("POST", "/api/webhooks/nobody"),
    ):
        answer = await here.http.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (404, "provider_not_found"), path


async def test_a_users_own_key_is_theirs_and_goes_first(here: Site) -> None:
    await store_key(here, "r8_wrong")
    body = {"provider": "replicate", "credential_name": "replicate-api-token", "value": KEY, "description": "mine"}
    stored = await here.http.post("/api/users/me/credentials", json=body)
    assert stored.json()["success"] is True
    (mine,) = (await here.http.get("/api/users/me/credentials?provider=replicate")).json()
    assert (mine["id"], mine["credential_name"], mine["description"], mine["is_active"]) == (
        stored.json()["id"],
        "api_token",
        "mine",
        True,
    )
    asked = {"provider": "replicate", "credential_name": "api_token"}
    valid = (await here.http.post("/api/users/me/credentials/validate", json=asked)).json()
    assert (valid["valid"], valid["token_source"]) == (True, "your own, stored by API")
    assert (await here.http.get("/api/users/ann/credentials")).json() == []
    stale = (await here.http.get("/api/users/me/credentials/stale?days=30")).json()
    assert (stale["user_id"], stale["stale_count"]) == ("local", 0)
    rotated = (await here.http.post("/api/users/me/credentials/rotate", json={"provider": "replicate"})).json()
    assert (rotated["success"], rotated["rotated_count"], rotated["credentials"][0]["status"]) == (True, 1, "rotated")
    due = (await here.http.post("/api/users/credentials/check-stale")).json()
    assert due == {"threshold_days": 90, "total_stale": 0, "users_with_stale": {}}
    removed = await here.http.delete("/api/users/me/credentials/replicate/api_token")
    assert removed.json() == {"success": True}
    after = (await here.http.post("/api/users/me/credentials/validate", json=asked)).json()
    assert after["valid"] is False, "everybody's key is wrong"
    assert KEY not in json.dumps([stored.json(), mine, valid, stale])


async def test_every_replica_hears_of_a_key_soon(here: Site) -> None:
    """Far sooner than each looks by itself (`directory.REFRESH_S`)."""
    await here.start("provider_bridge")
    await store_key(here)

    async def all_know() -> bool:
        return all([(await provider(here))["configured"] for _ in range(12)])

    await eventually(all_know, deadline_s=15)


async def test_health_asks_providers_when_it_is_told_to(here: Site) -> None:
    """The operations guide: `GET /api/cloud/health?include_providers=true`."""
    assert not [one for one in await components(here, "") if one["name"].startswith("provider:")]
    (secrets,) = await components(here, "?include_providers=true")
    assert (secrets["name"], secrets["status"], secrets["message"]) == (
        "secrets",
        "healthy",
        "no provider's key is set",
    )
    await store_key(here)
    secrets, replicate = await components(here, "?include_replicate=true")
    assert secrets["message"] == "keys of replicate are there"
    assert (replicate["name"], replicate["status"]) == ("provider:replicate", "healthy")
    await store_key(here, "r8_wrong")
    _, replicate = await components(here, "?include_providers=true")
    assert replicate["status"] == "degraded"
    assert "refuses our credentials" in replicate["message"]


async def components(site: Site, query: str) -> list[dict[str, Any]]:
    """Those beside the parts of Tunewright."""
    told = (await site.http.get(f"/api/cloud/health{query}")).json()
    return [one for one in told["components"] if one["name"] == "secrets" or one["name"].startswith("provider:")]
