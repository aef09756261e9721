"""Which addresses a submitted config may send a training machine to, and which it may not."""

import ipaddress
import socket
from urllib.parse import urlsplit

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})
_METADATA_ADDRESSES = frozenset({"100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"})
"""Where clouds tell a machine its own secrets, besides 169.254.169.254, which is link-local."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def endpoint_problem(url: str) -> str | None:
    """What is wrong with an endpoint URL of a config, or None. It is https, or http to this machine itself."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme not in {"http", "https"} or not host:
        return "it must be an https:// URL"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "it must not hold credentials, a query or a fragment"
    return _host_problem(host, parts.scheme)


def _host_problem(host: str, scheme: str) -> str | None:
    if host.rstrip(".").lower() in _METADATA_NAMES:
        return "it names a cloud's metadata service"
    address = literal_address(host)
    if address is not None and (reason := address_problem(address)) is not None:
        return reason
    if scheme == "http" and not is_loopback(host):
        return "plain http is for this machine itself only; use https"
    return None


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by name or by number."""
    address = literal_address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def address_problem(address: IpAddress) -> str | None:
    """Why nobody may be sent to this address, or None."""
    real = _unwrapped(address)
    if str(real) in _METADATA_ADDRESSES:
        return "it is the address of a cloud's metadata service"
    if real.is_link_local:
        return "it is a link-local address"
    if real.is_multicast or real.is_unspecified or real == ipaddress.IPv4Address("255.255.255.255"):
        return "it is no address of a machine"
    return None


def literal_address(host: str) -> IpAddress | None:
    """The address that a host spells out, in any of the forms that a resolver takes (`2130706433` is 127.0.0.1)."""
    try:
        return _unwrapped(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def _unwrapped(address: IpAddress) -> IpAddress:
    """The IPv4 address inside an IPv6 one, where that is what it leads to."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
