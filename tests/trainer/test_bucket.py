"""Uploads to a real S3 server program: signed, in parts, skipped and checked; what it refuses, and when it is away."""

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from buckets import BUCKET, Gate, S3Server, running_s3
from obstore.store import S3Store

from shared.contracts.training.delivery import BucketTarget
from trainer.files import sha256_of
from trainer.publish.bucket import BucketStore
from trainer.publish.credentials import BucketCredentials
from trainer.publish.upload import OutgoingFile, UploadDelayed, UploadRefused

PART_BYTES = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture
def gate(s3: S3Server) -> Iterator[Gate]:
    made = Gate(s3.port)
    yield made
    made.close()


def a_file(folder: Path, name: str = "lora.safetensors", content: bytes = b"weights") -> OutgoingFile:
    (folder / name).write_bytes(content)
    return OutgoingFile(folder / name, name)


def store(
    s3: S3Server,
    *,
    url: str | None = None,
    bucket: str = BUCKET,
    prefix: str = "",
    keys: BucketCredentials | None = None,
) -> BucketStore:
    target = BucketTarget(provider="s3", bucket=bucket, prefix=prefix, endpoint_url=url or s3.url)
    return BucketStore(target, keys or s3.credentials, part_bytes=PART_BYTES)


def content_of(s3: S3Server, key: str) -> bytes:
    keys = s3.credentials
    reader = S3Store(
        BUCKET, endpoint=s3.url, region="us-east-1", access_key_id=keys.access_key_id,
        secret_access_key=keys.secret_access_key, client_options={"allow_http": True},
    )  # fmt: skip
    return bytes(obstore.get(reader, key).bytes())


def test_a_file_is_there_under_the_prefix_with_its_digest(s3: S3Server, tmp_path: Path) -> None:
    file = a_file(tmp_path)
    stored = store(s3, prefix="team/digits").put(file)
    assert (stored.object_key, stored.sha256) == ("team/digits/lora.safetensors", sha256_of(file.path))
    assert content_of(s3, stored.object_key) == b"weights"


def test_a_large_file_goes_in_parts_and_is_not_sent_again(s3: S3Server, gate: Gate, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 12  # 12 MiB: three parts
    file = a_file(tmp_path, "big.safetensors", content)
    store(s3, url=gate.url).put(file)
    assert content_of(s3, "big.safetensors") == content
    sent = gate.bodies
    assert sent >= 1
    store(s3, url=gate.url).put(file)
    assert gate.bodies == sent


def test_a_file_that_changed_is_sent_again(s3: S3Server, tmp_path: Path) -> None:
    store(s3).put(a_file(tmp_path, "changes", b"first"))
    store(s3).put(a_file(tmp_path, "changes", b"again"))
    assert content_of(s3, "changes") == b"again"


def test_an_object_with_another_etag_is_read_back(s3: S3Server, tmp_path: Path) -> None:
    """A bucket that encrypts with keys of its own gives ETags that say nothing of the content."""
    file = a_file(tmp_path, "parts", b"x" * (6 * 1024 * 1024))
    store(s3).put(file)
    target = BucketTarget(provider="s3", bucket=BUCKET, endpoint_url=s3.url)
    whole = BucketStore(target, s3.credentials, part_bytes=16 * 1024 * 1024)
    assert whole.put(file).sha256 == sha256_of(file.path)  # there already, in parts: known by its content


@pytest.mark.parametrize("part", ["access_key_id", "secret_access_key"])
def test_wrong_credentials_are_refused_and_not_shown(s3: S3Server, tmp_path: Path, part: str) -> None:
    right = s3.credentials
    wrong = {
        "access_key_id": right.access_key_id,
        "secret_access_key": right.secret_access_key,
        part: "WrongWrongWrong",
    }
    with pytest.raises(UploadRefused, match="credentials may not write") as refused:
        store(s3, keys=BucketCredentials(**wrong)).put(a_file(tmp_path))
    said = str(refused.value) + repr(right)
    assert right.secret_access_key not in said
    assert right.access_key_id not in said
    assert "WrongWrong" not in said


def test_a_bucket_that_is_not_there_is_refused_by_name(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(UploadRefused, match="no bucket nothing-here"):
        store(s3, bucket="nothing-here").put(a_file(tmp_path))


def test_without_credentials_the_machines_owner_is_told_what_to_set(tmp_path: Path) -> None:
    target = BucketTarget(provider="s3", bucket=BUCKET, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(UploadRefused, match="AWS_ACCESS_KEY_ID"):
        BucketStore(target, None).put(a_file(tmp_path))


def test_a_server_that_was_away_takes_the_file_when_it_is_back(s3: S3Server, gate: Gate, tmp_path: Path) -> None:
    there, file = store(s3, url=gate.url), a_file(tmp_path, "later", b"later")
    gate.open = False
    with pytest.raises(UploadDelayed):
        there.put(file)
    gate.open = True
    there.put(file)
    assert content_of(s3, "later") == b"later"


def test_a_server_with_a_fault_delays_and_says_which(s3: S3Server, gate: Gate, tmp_path: Path) -> None:
    body = b"<Error><Code>SlowDown</Code></Error>"
    gate.answers = lambda request: (
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
        if request.startswith(b"PUT")
        else None
    )
    with pytest.raises(UploadDelayed, match="SlowDown"):
        store(s3, url=gate.url).put(a_file(tmp_path, "slow"))


def test_what_arrives_damaged_is_not_called_delivered(s3: S3Server, gate: Gate, tmp_path: Path) -> None:
    """The server says 200 and keeps nothing of it."""
    gate.answers = lambda request: (
        b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
        if request.startswith(b"PUT")
        else None
    )
    with pytest.raises(UploadDelayed, match="not what was sent"):
        store(s3, url=gate.url).put(a_file(tmp_path, "lost"))


def test_a_name_that_leads_to_this_machine_or_nowhere_is_not_followed(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"inside.example.org": "127.0.0.1", "cloud.example.org": "169.254.169.254"}

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (found[host], port))]

    monkeypatch.setattr("trainer.publish.bucket.socket.getaddrinfo", resolve)
    for host, reason in (("inside.example.org", "this machine itself"), ("cloud.example.org", "link-local")):
        with pytest.raises(UploadRefused, match=reason):
            store(s3, url=f"https://{host}").put(a_file(tmp_path))


def test_the_target_is_named_without_secrets_and_the_public_address_is_told() -> None:
    keys = BucketCredentials("AKIAEXAMPLE", "verysecret")
    elsewhere = BucketTarget(
        provider="r2", bucket=BUCKET, prefix="digits", endpoint_url="https://x.r2.example.org",
        public_base_url="https://cdn.example.org",
    )  # fmt: skip
    assert BucketStore(elsewhere, keys).target == "s3:models/digits@x.r2.example.org"
    assert BucketStore(elsewhere, keys).url == "https://cdn.example.org/digits"
    assert BucketStore(BucketTarget(provider="s3", bucket=BUCKET), keys).url == "s3://models"
