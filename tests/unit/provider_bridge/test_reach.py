"""Whether a machine elsewhere can call us back."""

import pytest

from services.provider_bridge.outbound.ports import StartRefused
from services.provider_bridge.outbound.vendors.reach import check_reach, webhook_for

API = "https://api.example.com"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "http://localhost:8001", "http://[::1]:1", "http://0.0.0.0"])
def test_a_gateway_on_loopback_is_refused_with_the_advice_to_name_a_public_address(url: str) -> None:
    with pytest.raises(StartRefused) as refused:
        check_reach(url, API)
    assert refused.value.advice is not None
    assert "TUNEWRIGHT_PUBLIC_URL" in refused.value.advice


@pytest.mark.parametrize("url", [None, "https://tw.example.org", "http://10.0.0.5:8001"])
def test_a_gateway_elsewhere_or_none_is_taken(url: str | None) -> None:
    check_reach(url, API)


def test_where_the_providers_api_is_on_loopback_too_its_machines_are() -> None:
    check_reach("http://127.0.0.1:8001", "http://127.0.0.1:9")


def test_a_webhook_without_https_is_given_to_a_provider_on_loopback_alone() -> None:
    plain, safe = "http://tw.example.org/hook", "https://tw.example.org/hook"
    assert webhook_for(plain, API) is None
    assert webhook_for(plain, "http://127.0.0.1:9") == plain
    assert webhook_for(safe, API) == safe
    assert webhook_for(None, API) is None
