"""Every provider's calls, the vendors' clients included, leave by the proxy and trust the CA that they are given.

The other side is a server with a certificate of a private CA: who does not know the CA does not get as far as asking.
"""

import contextlib
import ssl
import threading
from collections.abc import AsyncGenerator, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
import stamina

from services.provider_bridge.outbound.egress import NetworkSettings, VendorRefused
from services.provider_bridge.outbound.kinds import Materials, ProviderKind
from services.provider_bridge.outbound.ports import CredentialRefused, Provider, StartRefused
from services.provider_bridge.outbound.vendors.catalogue import KINDS
from shared.clock import utc_now
from shared.problems import Unavailable
from shared.settings import Secret
from tests.simulators.forward_proxy import ForwardProxy
from tests.support.private_ca import PrivateCa

REFUSALS = (Unavailable, CredentialRefused, StartRefused, VendorRefused)
CALLS = ("validate_credentials", "quote", "list_ours", "balance")


class Vendor(ThreadingHTTPServer):
    """Some API behind TLS: it answers 401 to everything and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self.asked: list[str] = []
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
                pass

            def _serve(self) -> None:
                vendor.asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b'{"detail": "no such key"}'
                self.send_response(401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names are the library's

        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever does not trust us hangs up in the handshake: that is the point."""


@contextlib.contextmanager
def serving(vendor: Vendor) -> Generator[Vendor]:
    thread = threading.Thread(target=vendor.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield vendor
    vendor.shutdown()
    vendor.server_close()


@pytest.fixture(scope="module")
def private_ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCa:
    return PrivateCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def vendor(private_ca: PrivateCa) -> Generator[Vendor]:
    with serving(Vendor(private_ca.server_context())) as server:
        yield server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that clients could read by themselves: what they do is by our settings alone."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def one_try() -> Generator[None]:
    """Nobody is there, however often he is asked."""
    with stamina.set_testing(True, attempts=1):
        yield


def built(kind: ProviderKind, vendor: Vendor, network: NetworkSettings) -> Provider:
    """The adapter with every address of its settings at our vendor."""
    fields = {field.name: field for field in msgspec.structs.fields(kind.settings)}
    addresses = {
        name: vendor.url + _path_of(field.default)
        for name, field in fields.items()
        if isinstance(field.default, str) and field.default.startswith(("https://", "http://"))
    }
    return kind.build(
        Materials(
            credentials={field.name: Secret("a-key-of-the-test") for field in kind.credentials},
            settings=kind.settings(**addresses),
            network=network,
            installation="0a1b2c3d",
            clock=utc_now,
        )
    )


def _path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3] if url.count("/") > 2 else ""


@contextlib.asynccontextmanager
async def asked(kind: ProviderKind, vendor: Vendor, network: NetworkSettings) -> AsyncGenerator[list[str]]:
    """What the adapter's questions came to; each is refused in one of the port's ways."""
    provider = built(kind, vendor, network)
    outcomes: list[str] = []
    try:
        for name in CALLS:
            try:
                await getattr(provider, name)()
                outcomes.append("answered")
            except REFUSALS as refusal:
                outcomes.append(type(refusal).__name__)
        yield outcomes
    finally:
        await provider.close()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> ProviderKind:
    return request.param


async def test_calls_go_through_the_proxy_and_trust_the_ca(
    kind: ProviderKind, vendor: Vendor, private_ca: PrivateCa
) -> None:
    with ForwardProxy() as proxy:
        network = NetworkSettings(proxy_url=proxy.url, ca_bundle=str(private_ca.bundle), timeout_s=5)
        async with asked(kind, vendor, network):
            pass
    assert vendor.asked, "it asked nothing"
    assert set(proxy.seen) == {f"CONNECT {vendor.url.removeprefix('https://')}"}


async def test_without_the_ca_nothing_is_asked(kind: ProviderKind, vendor: Vendor) -> None:
    async with asked(kind, vendor, NetworkSettings(timeout_s=5)) as outcomes:
        assert "Unavailable" in outcomes
    assert vendor.asked == []


async def test_a_proxy_that_is_not_there_is_not_passed_by(
    kind: ProviderKind, vendor: Vendor, private_ca: PrivateCa
) -> None:
    network = NetworkSettings(proxy_url="http://127.0.0.1:1", ca_bundle=str(private_ca.bundle), timeout_s=5)
    async with asked(kind, vendor, network) as outcomes:
        assert "Unavailable" in outcomes
    assert vendor.asked == []


async def test_checks_that_are_off_ask_whoever_answers(kind: ProviderKind, vendor: Vendor) -> None:
    async with asked(kind, vendor, NetworkSettings(ssl_verify=False, timeout_s=5)):
        pass
    assert vendor.asked
