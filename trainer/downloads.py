"""Fetch what a stranger's URL names, without becoming their way into a private network.

Every address that a host name resolves to must be public, or lie in a network that the operator has allowed; the
connection then goes to the address that was checked, so a name that changes its mind in between gains nothing.
Redirects are followed by hand and checked the same way. A URL's query may hold a signature, so no message shows it.
`s3://bucket/key` becomes a signed URL of the one S3 server that the operator has given access to.
"""

import http
import ipaddress
import logging
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx

from trainer.control import Control
from trainer.failures import AttemptFailed
from trainer.report.gateway import RETRYABLE_STATUS, Backoff

_log = logging.getLogger("trainer.downloads")
_TIMEOUT = httpx.Timeout(connect=10, read=60, write=60, pool=10)
_MAX_REDIRECTS = 5
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_FREE_BYTES_KEPT = 256 * 1024 * 1024

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], list[str]]


class _Delayed(Exception):  # noqa: N818 -- an answer, not a fault
    """The other side cannot serve the file now."""


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """The S3 server that `s3://` means here, and the operator's key to it. Without an endpoint it is Amazon's."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    endpoint_url: str = ""
    region: str = "us-east-1"

    def signed(self, bucket: str, key: str) -> str:
        """A URL that fetches one object, good for an hour."""
        # Imported here: only an operator who sets a key needs it.
        from obstore import sign  # noqa: PLC0415
        from obstore.store import S3Store  # noqa: PLC0415

        store = S3Store(
            bucket,
            endpoint=self.endpoint_url or f"https://{bucket}.s3.{self.region}.amazonaws.com",
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region=self.region,
            virtual_hosted_style_request=not self.endpoint_url,
            client_options={"allow_http": True},
        )
        return sign(store, "GET", key, timedelta(hours=1))


@dataclass(frozen=True)
class DownloadRules:
    """Which addresses may be spoken to, how large a file may be, and how long one file is tried for."""

    private_networks: tuple[IpNetwork, ...] = ()
    """Networks that are not public and are allowed all the same: the operator's choice, never a job's."""
    max_bytes: int = 100 * 1024**3
    patience_s: float = 600.0
    s3: S3Access | None = None

    def allows(self, address: IpAddress) -> bool:
        """Whether a connection to `address` may be made."""
        if any(address in network for network in self.private_networks):
            return True
        inner = _embedded(address)
        return address.is_global and not address.is_multicast and (inner is None or self.allows(inner))


def networks_from(text: str) -> tuple[IpNetwork, ...]:
    """`10.0.0.0/8, 127.0.0.1` as networks. Raises ValueError naming the first word that is none."""
    return tuple(ipaddress.ip_network(word) for word in text.replace(",", " ").split())


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Downloader:
    """Fetches files by http and https."""

    def __init__(self, rules: DownloadRules, control: Control, resolve: Resolve = resolve) -> None:
        self._rules = rules
        self._control = control
        self._resolve = resolve
        # The client logs each URL whole, with a signature in its query if there is one.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # trust_env off: a proxy would resolve the name again, out of sight of the check.
        self._http = httpx.Client(timeout=_TIMEOUT, trust_env=False, follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def fetch(self, url: str, target: Path) -> None:
        """Write the file at `url` to `target`.

        Raises AttemptFailed: bad_data for a URL that may not be fetched or a file that is too large, unreachable when
        the other side does not serve it in time.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        backoff = Backoff()
        end = time.monotonic() + self._rules.patience_s
        ours = url.lower().startswith("s3://")
        while True:
            try:
                self._follow(self._signed(url) if ours else httpx.URL(url), target, ours=ours)
            except httpx.InvalidURL as error:
                raise _refused(url, f"is not a URL: {error}") from error
            except (httpx.HTTPError, _Delayed) as error:
                wait_s = backoff.next_wait_s()
                reason = str(error) or type(error).__name__
                if time.monotonic() + wait_s > end:
                    raise _unreachable(url, reason) from error
                _log.warning("fetching %s failed (%s); trying again in %.1f s", shown_url(url), reason, wait_s)
                if self._control.stop.wait(wait_s):
                    raise AttemptFailed("preempted", "stopped while fetching data", "Start the job again.") from error
            else:
                return

    def _signed(self, url: str) -> httpx.URL:
        parsed = httpx.URL(url)
        if self._rules.s3 is None:
            raise _refused(url, "means an S3 server, and none is set up on this machine", _S3_ADVICE)
        if not parsed.host or not parsed.path.strip("/"):
            raise _refused(url, "must name a bucket and a key")
        return httpx.URL(self._rules.s3.signed(parsed.host, parsed.path.lstrip("/")))

    def _follow(self, url: httpx.URL, target: Path, *, ours: bool) -> None:
        """`ours`: the first address is the operator's own choice, so it may be private."""
        for hop in range(_MAX_REDIRECTS + 1):
            request = self._checked_request(url, trusted=ours and hop == 0)
            response = self._http.send(request, stream=True)
            try:
                if response.has_redirect_location:
                    url = url.join(response.headers["location"])
                    continue
                self._check_status(url, response)
                self._write(url, response, target)
                return
            finally:
                response.close()
        raise _refused(str(url), f"redirects more than {_MAX_REDIRECTS} times")

    def _checked_request(self, url: httpx.URL, *, trusted: bool) -> httpx.Request:
        """A request to the checked address itself, with the host name in the Host header and in TLS."""
        if url.scheme not in _DEFAULT_PORTS or not url.host:
            raise _refused(str(url), "must begin with http:// or https://")
        address = self._checked_address(url, trusted=trusted)
        extensions = {"sni_hostname": url.host} if url.scheme == "https" else {}
        headers = {"Host": url.netloc.decode("ascii").rpartition("@")[2], "Accept-Encoding": "identity"}
        return self._http.build_request("GET", url.copy_with(host=address), headers=headers, extensions=extensions)

    def _checked_address(self, url: httpx.URL, *, trusted: bool) -> str:
        try:
            addresses = self._resolve(url.host, url.port or _DEFAULT_PORTS[url.scheme])
        except OSError as error:
            raise _Delayed(f"the host name {url.host} cannot be resolved") from error
        for text in addresses:
            if not trusted and not self._rules.allows(ipaddress.ip_address(text.partition("%")[0])):
                raise _refused(str(url), "leads to an address that is not public", _PRIVATE_ADVICE)
        return addresses[0]

    def _check_status(self, url: httpx.URL, response: httpx.Response) -> None:
        status = response.status_code
        if status in RETRYABLE_STATUS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Delayed(f"HTTP {status}")
        if not response.is_success:
            raise _unreachable(str(url), f"HTTP {status}")
        announced = response.headers.get("content-length", "")
        if announced.isdigit():
            self._check_size(url, int(announced))

    def _check_size(self, url: httpx.URL, size_bytes: int) -> None:
        if size_bytes > self._rules.max_bytes:
            raise _refused(str(url), f"is larger than the {self._rules.max_bytes} bytes that are allowed here")

    def _write(self, url: httpx.URL, response: httpx.Response, target: Path) -> None:
        scratch = target.with_name(f".{target.name}.part")
        received = 0
        with scratch.open("wb") as stream:
            for chunk in response.iter_raw():
                received += len(chunk)
                self._check_size(url, received)
                if shutil.disk_usage(target.parent).free < _FREE_BYTES_KEPT:
                    raise _refused(str(url), "does not fit on this machine's disk")
                stream.write(chunk)
        announced = response.headers.get("content-length", "")
        if announced.isdigit() and received != int(announced):
            raise _Delayed(f"{received} of {announced} bytes arrived")
        scratch.replace(target)


_PRIVATE_ADVICE = (
    "Use a URL that is reachable from the internet, or let the operator of this worker add the network to "
    "TUNEWRIGHT_PRIVATE_NETWORKS."
)
_S3_ADVICE = "Give a presigned https URL, or let the operator of this worker set TUNEWRIGHT_S3_ACCESS_KEY_ID."


def shown_url(url: str) -> str:
    """A URL without user, password, query and fragment."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "(not a URL)"
    return str(parsed.copy_with(query=None, fragment=None, userinfo=b""))


def _embedded(address: IpAddress) -> IpAddress | None:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _refused(url: str, what: str, advice: str = "Give another URL and submit the job again.") -> AttemptFailed:
    return AttemptFailed("bad_data", f"{shown_url(url)} {what}", advice)


def _unreachable(url: str, reason: str) -> AttemptFailed:
    message = f"{shown_url(url)} could not be fetched: {reason}"
    return AttemptFailed("unreachable", message, "Check that the URL is right and has not expired.")
