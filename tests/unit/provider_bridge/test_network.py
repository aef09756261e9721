"""How calls leave, as the environment says; every fault of it is named at once."""

from pathlib import Path

import httpx
import pytest

from services.provider_bridge.outbound.egress import client_of
from services.provider_bridge.outbound.network import bypasses_proxy, read_network
from shared.settings import SettingsError
from tests.support.private_ca import PrivateCa

PROXIES = {"HTTPS_PROXY": "http://one:8080", "HTTP_PROXY": "http://two:8080"}


def test_without_variables_calls_go_straight_and_certificates_are_checked() -> None:
    settings = read_network({}).settings_for("https://api.replicate.com/v1")
    assert (settings.proxy_url, settings.ca_bundle, settings.ssl_verify, settings.timeout_s) == (None, None, True, 30.0)


def test_each_scheme_has_its_proxy_in_capitals_or_not() -> None:
    for environ in (PROXIES, {name.lower(): url for name, url in PROXIES.items()}):
        network = read_network(environ)
        assert network.settings_for("https://api.replicate.com").proxy_url == "http://one:8080"
        assert network.settings_for("http://127.0.0.1:1").proxy_url == "http://two:8080"


@pytest.mark.parametrize(
    ("host", "listed"),
    [
        ("api.internal", "api.internal"),
        ("a.corp.example.com", "corp.example.com"),
        ("a.corp.example.com", ".corp.example.com"),
        ("a.corp.example.com", "*.corp.example.com"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("127.0.0.1", "127.0.0.1:8080"),
        ("anything", "*"),
    ],
)
def test_no_proxy_is_read_in_its_usual_forms(host: str, listed: str) -> None:
    network = read_network({**PROXIES, "NO_PROXY": f"other.example.com, {listed}"})
    assert network.settings_for(f"https://{host}").proxy_url is None
    assert network.settings_for("https://10.example.org").proxy_url == ("http://one:8080" if listed != "*" else None)


def test_a_name_that_only_ends_alike_is_no_subdomain() -> None:
    assert not bypasses_proxy("notcorp.example.com", ("corp.example.com",))


async def test_a_client_leaves_out_the_proxy_for_listed_hosts() -> None:
    settings = read_network({**PROXIES, "NO_PROXY": ".corp.example.com"}).settings_for("https://api.replicate.com")
    async with client_of(settings) as client:
        chosen = {
            url: client._transport_for_url(httpx.URL(url)) is client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - what httpx chose
            for url in ("https://files.corp.example.com", "https://api.replicate.com")
        }
    assert list(chosen.values()) == [True, False]


def test_checks_of_certificates_are_off_only_with_an_acknowledgement(tmp_path: Path) -> None:
    off = {"SIMPLETUNER_SSL_VERIFY": "false"}
    with pytest.raises(SettingsError, match="SIMPLETUNER_SSL_VERIFY_ACKNOWLEDGED=true"):
        read_network(off)
    network = read_network({**off, "SIMPLETUNER_SSL_VERIFY_ACKNOWLEDGED": "true"})
    assert network.settings_for("https://x").ssl_verify is False
    bundle = PrivateCa(tmp_path).bundle
    assert read_network({"SIMPLETUNER_CA_BUNDLE": str(bundle)}).ca_bundle == str(bundle)


def test_every_fault_is_named_at_once_and_no_password_is_shown(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate", encoding="utf-8")
    environ = {
        "HTTPS_PROXY": "socks5://ann:sesame@proxy:1",
        "SIMPLETUNER_CA_BUNDLE": str(text),
        "SIMPLETUNER_SSL_VERIFY": "perhaps",
        "SIMPLETUNER_HTTP_TIMEOUT": "0",
    }
    with pytest.raises(SettingsError) as refused:
        read_network(environ)
    assert all(name in str(refused.value) for name in environ)
    assert "sesame" not in str(refused.value)
