"""Files to a bucket behind an S3 interface: signed, in parts, skipped when they are there, checked when they are."""

import hashlib
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from shared.contracts.training.delivery import BucketTarget
from shared.contracts.training.endpoints import address_problem, is_loopback
from trainer.publish.credentials import BucketCredentials
from trainer.publish.upload import OutgoingFile, StoredFile, UploadDelayed, UploadRefused, described

if TYPE_CHECKING:
    from obstore.store import S3Config

PART_BYTES = 8 * 1024 * 1024
_MAX_PARTS = 9_000
_DEFAULT_REGION = "us-east-1"
_READ_BYTES = 1024 * 1024
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status (?:code:? )?(\d{3})")
_NO_BUCKET = "NoSuchBucket"
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_WORTH_A_RETRY = frozenset({408, 425, 429})


class BucketStore:
    """Puts files under the target's prefix. A file that is there with the same content is not sent again."""

    def __init__(
        self, target: BucketTarget, credentials: BucketCredentials | None, part_bytes: int = PART_BYTES
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._part_bytes = part_bytes
        self._store: S3Store | None = None

    @property
    def target(self) -> str:
        """`s3:bucket/prefix`, with the host behind it where that is not AWS."""
        host = urlsplit(self._target.endpoint_url).netloc if self._target.endpoint_url else ""
        return f"s3:{self._place}" + (f"@{host}" if host else "")

    @property
    def url(self) -> str:
        """Where people fetch it: the public address of the bucket if one was given."""
        public = self._target.public_base_url
        return f"{public}/{self._target.prefix}".rstrip("/") if public else f"s3://{self._place}"

    def put(self, file: OutgoingFile) -> StoredFile:
        """Upload one file, in parts when it is large, and check what the bucket has. A repeat is harmless."""
        key = f"{self._target.prefix}/{file.name}".strip("/")
        stored = described(file, key)
        part_bytes = max(self._part_bytes, -(-stored.size_bytes // _MAX_PARTS))
        expected = _etag(file.path, stored.size_bytes, part_bytes)
        with _told_apart(self._target.bucket):
            store = self._opened()
            if not self._has(store, key, stored, expected):
                attributes = {"Content-Type": file.content_type}
                obstore.put(store, key, file.path, attributes=attributes, chunk_size=part_bytes, max_concurrency=4)
                if not self._has(store, key, stored, expected):
                    raise UploadDelayed("what the bucket has is not what was sent")
        return stored

    def complete(self) -> None:
        """Nothing to do: each object is whole by itself."""

    @property
    def _place(self) -> str:
        return f"{self._target.bucket}/{self._target.prefix}".rstrip("/")

    def _has(self, store: S3Store, key: str, stored: StoredFile, expected: str) -> bool:
        """Whether the object is there with this content: by its ETag, or read back where that says something else."""
        try:
            found = obstore.head(store, key)
        except FileNotFoundError:
            return False
        if found["size"] != stored.size_bytes:
            return False
        if (found["e_tag"] or "").strip('"') == expected:
            return True
        digest = hashlib.sha256()
        for chunk in obstore.get(store, key).stream(min_chunk_size=_READ_BYTES):
            digest.update(bytes(chunk))
        return digest.hexdigest() == stored.sha256

    def _opened(self) -> S3Store:
        if self._credentials is None:
            message = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set on the machine that trains"
            raise UploadRefused(message)
        if self._target.endpoint_url:
            _check_addresses(self._target.endpoint_url)
        if self._store is None:
            self._store = _client(self._target, self._credentials)
        return self._store


def _client(target: BucketTarget, credentials: BucketCredentials) -> S3Store:
    config: S3Config = {
        "bucket": target.bucket,
        "region": target.region or credentials.region or _DEFAULT_REGION,
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
    }
    if target.endpoint_url:
        config["endpoint"] = target.endpoint_url
    if credentials.session_token:
        config["session_token"] = credentials.session_token
    return S3Store(
        config=config,
        # allow_http: the config's check let plain http through for this machine itself only.
        client_options={"allow_http": True, "timeout": "5 minutes", "connect_timeout": "10 seconds"},
        retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=60)},
    )


def _check_addresses(endpoint_url: str) -> None:
    """Refuse a name that leads where no config may lead; names were not resolved when the config was checked."""
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UploadDelayed(f"{host} cannot be resolved") from error
    for *_, place in found:
        address = ip_address(str(place[0]).partition("%")[0])
        if address.is_loopback and not is_loopback(host):
            raise UploadRefused(f"{host} is not used: it leads to this machine itself")
        if (reason := address_problem(address)) is not None:
            raise UploadRefused(f"{host} is not used: {reason}")


def _etag(path: Path, size_bytes: int, part_bytes: int) -> str:
    """The ETag of this content: MD5, or MD5 of the parts' MD5s with their number when it is sent in parts."""
    digests: list[bytes] = []
    with path.open("rb") as stream:
        while part := stream.read(part_bytes):
            digests.append(hashlib.md5(part, usedforsecurity=False).digest())
    if size_bytes <= part_bytes:
        return (digests or [hashlib.md5(b"", usedforsecurity=False).digest()])[0].hex()
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


@contextmanager
def _told_apart(bucket: str) -> Generator[None]:
    """Errors of the client as refusals or delays, in words that hold no request and no signature."""
    try:
        yield
    except FileNotFoundError as error:
        raise UploadRefused(f"there is no bucket {bucket}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        reason = f"the credentials may not write to {bucket} ({_code(error) or 'refused'})"
        raise UploadRefused(reason) from error
    except (BaseError, ValueError) as error:
        code, status = _code(error), _STATUS.search(str(error))
        number = int(status.group(1)) if status else _SERVER_ERROR
        if code == _NO_BUCKET:
            raise UploadRefused(f"there is no bucket {bucket}") from error
        if _CLIENT_ERROR <= number < _SERVER_ERROR and number not in _WORTH_A_RETRY:
            raise UploadRefused(f"HTTP {number} {code}".rstrip()) from error
        raise UploadDelayed(code or (f"HTTP {number}" if status else "no answer")) from error


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found.group(1) if found else ""
