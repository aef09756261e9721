# pyright: basic
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver

from trainer.control import Control
from trainer.downloads import Downloader, DownloadRules, S3Access, networks_from, shown_url
from trainer.failures import AttemptFailed

LOOPBACK = networks_from("127.0.0.0/8")


@pytest.fixture
def fetch(receiver: Receiver, tmp_path: Path) -> Iterator[Any]:
    """Fetches a path of the receiver, with rules that allow loopback."""
    made: list[Downloader] = []

    def run(path: str, *, resolve: Any = None, **rules: Any) -> bytes:
        given = DownloadRules(**{"private_networks": LOOPBACK, "patience_s": 0.2, **rules})
        downloader = Downloader(given, Control(), **({"resolve": resolve} if resolve else {}))
        made.append(downloader)
        downloader.fetch(path if "://" in path else f"{receiver.url}{path}", tmp_path / "file")
        return (tmp_path / "file").read_bytes()

    receiver.open = True
    yield run
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
     "224.0.0.1", "::1", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "ff02::1"],
)  # fmt: skip
def test_no_address_that_is_not_public_is_allowed(address: str) -> None:
    assert not DownloadRules().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert DownloadRules().allows(ipaddress.ip_address(address))


def test_the_operator_opens_networks_and_only_those() -> None:
    rules = DownloadRules(private_networks=networks_from("10.0.0.0/8, 192.168.1.7"))
    assert rules.allows(ipaddress.ip_address("10.200.0.1"))
    assert rules.allows(ipaddress.ip_address("192.168.1.7"))
    assert not rules.allows(ipaddress.ip_address("192.168.1.8"))
    with pytest.raises(ValueError, match="office"):
        networks_from("office")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x", "gopher://x/", "http://", "data:,x"])
def test_other_kinds_of_urls_are_refused(fetch: Any, url: str) -> None:
    with pytest.raises(AttemptFailed) as failed:
        fetch(url)
    assert failed.value.kind == "bad_data"


def test_a_private_address_is_refused_before_a_connection_is_made(fetch: Any, receiver: Receiver) -> None:
    with pytest.raises(AttemptFailed, match="not public"):
        fetch("/set.zip?signature=secret", private_networks=())
    assert receiver.asked == []


def test_one_private_address_of_a_name_is_enough_to_refuse_it(fetch: Any) -> None:
    with pytest.raises(AttemptFailed, match="not public"):
        fetch("http://mixed.example.org/", resolve=lambda _host, _port: ["1.1.1.1", "10.0.0.1"])


def test_the_connection_goes_to_the_address_that_was_checked(fetch: Any, receiver: Receiver) -> None:
    receiver.files["/set.zip"] = b"content"
    port = receiver.url.rpartition(":")[2]
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    assert fetch(f"http://no-such-host.invalid:{port}/set.zip", resolve=resolve) == b"content"
    assert asked == ["no-such-host.invalid"]
    assert receiver.asked[-1].headers["Host"] == f"no-such-host.invalid:{port}"


def test_a_redirect_is_checked_like_the_first_url(fetch: Any, receiver: Receiver) -> None:
    receiver.redirects["/away"] = "http://169.254.169.254/latest"
    with pytest.raises(AttemptFailed, match=r"169\.254\.169\.254/latest leads to an address that is not public"):
        fetch("/away")
    receiver.files["/set.zip"] = b"content"
    receiver.redirects["/near"] = "/set.zip"
    assert fetch("/near") == b"content"
    receiver.redirects["/round"] = "/round"
    with pytest.raises(AttemptFailed, match="redirects more than"):
        fetch("/round")


def test_a_file_above_the_limit_is_refused_and_not_kept(fetch: Any, receiver: Receiver, tmp_path: Path) -> None:
    receiver.files["/set.zip"] = bytes(5000)
    with pytest.raises(AttemptFailed, match="larger than the 4999 bytes"):
        fetch("/set.zip", max_bytes=4999)
    assert not (tmp_path / "file").exists()


def test_a_missing_file_is_told_without_the_signature(fetch: Any) -> None:
    with pytest.raises(AttemptFailed) as failed:
        fetch("/none.zip?X-Signature=secret")
    assert failed.value.kind == "unreachable"
    assert "HTTP 404" in failed.value.message
    assert "secret" not in failed.value.message


def test_an_s3_url_is_signed_for_the_operators_server_alone(fetch: Any, receiver: Receiver) -> None:
    receiver.files["/bucket/sets/a b.zip"] = b"content"
    access = S3Access(access_key_id="key", secret_access_key="not shown", endpoint_url=receiver.url)
    assert fetch("s3://bucket/sets/a b.zip", private_networks=(), s3=access) == b"content"
    assert "X-Amz-Signature=" in receiver.asked[-1].path
    assert "not shown" not in repr(access)
    receiver.redirects["/bucket/away"] = f"{receiver.url}/bucket/sets/a b.zip"
    with pytest.raises(AttemptFailed, match="not public"):
        fetch("s3://bucket/away", private_networks=(), s3=access)
    with pytest.raises(AttemptFailed, match="a bucket and a key"):
        fetch("s3://bucket/", s3=access)


def test_a_shown_url_has_no_user_and_no_query() -> None:
    assert shown_url("https://me:pw@example.org/a.zip?sig=1#x") == "https://example.org/a.zip"
    assert shown_url("http://[::1") == "(not a URL)"
