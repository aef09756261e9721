"""How this process's calls leave its machine, as its environment says: proxies, whom not to send through them, CAs."""

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from services.provider_bridge.domain.provider_settings import CommonSettings, proxy_problem, timeout_problem
from services.provider_bridge.outbound.egress import NetworkSettings
from shared.settings import SettingsError

ACKNOWLEDGEMENT = "SIMPLETUNER_SSL_VERIFY_ACKNOWLEDGED"
DEFAULT_TIMEOUT_S = 30.0
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

log = structlog.stdlib.get_logger()


class NetworkEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says, for calls to anywhere."""

    https_proxy: str | None = None
    http_proxy: str | None = None
    no_proxy: tuple[str, ...] = ()
    ca_bundle: str | None = None
    ssl_verify: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S

    def settings_for(self, url: str) -> NetworkSettings:
        """How calls to this origin leave, where nothing else is said: the proxy of its scheme, unless NO_PROXY has it.

        Hosts of NO_PROXY stay reachable without the proxy whatever else a provider's client calls.
        """
        proxy = self.http_proxy if url.startswith("http://") else self.https_proxy
        is_direct = bypasses_proxy(urlsplit(url).hostname or "", self.no_proxy)
        return NetworkSettings(
            proxy_url=None if is_direct else proxy,
            no_proxy=self.no_proxy,
            ca_bundle=self.ca_bundle,
            ssl_verify=self.ssl_verify,
            timeout_s=self.timeout_s,
        )


def overridden(network: NetworkSettings, settings: CommonSettings) -> NetworkSettings:
    """The same with what is set for one provider; its own proxy is for all its calls."""
    return NetworkSettings(
        proxy_url=settings.proxy_url or network.proxy_url,
        no_proxy=network.no_proxy if settings.proxy_url is None else (),
        ca_bundle=settings.ssl_ca_bundle or network.ca_bundle,
        ssl_verify=network.ssl_verify if settings.ssl_verify is None else settings.ssl_verify,
        timeout_s=settings.http_timeout or network.timeout_s,
    )


def read_network(environ: Mapping[str, str]) -> NetworkEnvironment:
    """The variables HTTPS_PROXY, HTTP_PROXY, NO_PROXY (in capitals or not) and SIMPLETUNER_{CA_BUNDLE,SSL_VERIFY,…}.

    Raises SettingsError naming every fault. TLS checks are off only with SIMPLETUNER_SSL_VERIFY_ACKNOWLEDGED=true.
    """
    faults: list[str] = []
    proxies = {name: _proxy(environ, name, faults) for name in ("https_proxy", "http_proxy")}
    no_proxy = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    found = NetworkEnvironment(
        https_proxy=proxies["https_proxy"],
        http_proxy=proxies["http_proxy"],
        no_proxy=tuple(word.strip().lower() for word in no_proxy.split(",") if word.strip()),
        ca_bundle=_bundle(environ, faults),
        ssl_verify=_verification(environ, faults),
        timeout_s=_timeout(environ, faults),
    )
    if faults:
        raise SettingsError("\n".join(faults))
    if not found.ssl_verify:
        log.warning("bridge.tls.unchecked", variable="SIMPLETUNER_SSL_VERIFY", meaning="anybody may answer for anybody")
    return found


def bypasses_proxy(host: str, no_proxy: tuple[str, ...]) -> bool:
    """Whether a list as in NO_PROXY has the host: `*`, a name, `.domain`, an address, or a network (10.0.0.0/8)."""
    name = host.lower().rstrip(".")
    return any(_matches(name, entry.partition(":")[0] if entry.count(":") == 1 else entry) for entry in no_proxy)


def _matches(host: str, entry: str) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    domain = entry.removeprefix("*").removeprefix(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def bundle_problem(path: str) -> str | None:
    """What is wrong with a CA bundle; None if it can be used."""
    if not Path(path).is_file():
        return f"there is no file {path}"
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        return f"{path} cannot be read as certificates in PEM form: {type(error).__name__}"
    return None


def _proxy(environ: Mapping[str, str], name: str, faults: list[str]) -> str | None:
    url = environ.get(name.upper()) or environ.get(name)
    if not url:
        return None
    given = url if "://" in url else f"http://{url}"  # as curl reads it
    if (problem := proxy_problem(given)) is not None:
        faults.append(f"{name.upper()}: {problem}")
    return given


def _bundle(environ: Mapping[str, str], faults: list[str]) -> str | None:
    path = environ.get("SIMPLETUNER_CA_BUNDLE")
    if path and (problem := bundle_problem(path)) is not None:
        faults.append(f"SIMPLETUNER_CA_BUNDLE: {problem}")
    return path or None


def _verification(environ: Mapping[str, str], faults: list[str]) -> bool:
    checks = _truth(environ, "SIMPLETUNER_SSL_VERIFY", faults, default=True)
    if not checks and not _truth(environ, ACKNOWLEDGEMENT, faults, default=False):
        faults.append(
            "SIMPLETUNER_SSL_VERIFY: without checks of certificates anybody on the way can read our keys. Set "
            f"SIMPLETUNER_CA_BUNDLE to your own CA instead, or {ACKNOWLEDGEMENT}=true to accept that."
        )
    return checks


def _truth(environ: Mapping[str, str], name: str, faults: list[str], *, default: bool) -> bool:
    word = environ.get(name, "").strip().lower()
    if word not in _TRUE | _FALSE | {""}:
        faults.append(f"{name}: it must be true or false")
    return word in _TRUE if word else default


def _timeout(environ: Mapping[str, str], faults: list[str]) -> float:
    text: Any = environ.get("SIMPLETUNER_HTTP_TIMEOUT", "").strip() or DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        faults.append("SIMPLETUNER_HTTP_TIMEOUT: it must be a number of seconds")
        return DEFAULT_TIMEOUT_S
    if (problem := timeout_problem(seconds)) is not None:
        faults.append(f"SIMPLETUNER_HTTP_TIMEOUT: {problem}")
    return seconds
