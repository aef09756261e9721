"""Whether a machine elsewhere can call us back. Every adapter of a company's machines asks before it starts one."""

import ipaddress
from urllib.parse import urlsplit

from services.provider_bridge.outbound.ports import StartRefused


def check_reach(gateway_url: str | None, api_url: str) -> None:
    """Raises StartRefused for a gateway on this machine's own loopback, unless the provider's API is there too."""
    if gateway_url is not None and _is_loopback(gateway_url) and not _is_loopback(api_url):
        raise StartRefused(
            f"The machine could not report to {gateway_url}: that address leads to the machine itself.",
            "Set TUNEWRIGHT_PUBLIC_URL to an address of the gateway that the provider's machines can reach.",
        )


def webhook_for(webhook_url: str | None, api_url: str) -> str | None:
    """The webhook's address if the provider would use it: https only, unless its API is on this machine's loopback."""
    if webhook_url is None or not (webhook_url.startswith("https://") or _is_loopback(api_url)):
        return None
    return webhook_url


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
