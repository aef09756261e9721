"""One file to its place: over HTTP to the gateway's storage, or, when run alone, nowhere but where it lies."""

import http
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx

from trainer.files import sha256_of
from trainer.report.gateway import UNAUTHORISED_STATUS, Gateway, is_retryable

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class OutgoingFile:
    """A file on disk and its name below the attempt's output prefix, such as `checkpoint-50/manifest.json`."""

    path: Path
    name: str
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class StoredFile:
    """A delivered file as reports name it. `object_key` is the key inside the output bucket."""

    name: str
    object_key: str
    sha256: str
    size_bytes: int
    content_type: str

    def reference(self) -> dict[str, str | int]:
        """The members that `checkpoint` and `done` lines list."""
        return {
            "name": self.name,
            "object_key": self.object_key,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
        }


class UploadRefused(Exception):  # noqa: N818 -- an answer, not a fault
    """The server will not take this file; trying again would not help."""


class UploadDelayed(Exception):  # noqa: N818 -- an answer, not a fault
    """The server cannot take the file now. `response` may carry Retry-After."""

    def __init__(self, reason: str, response: httpx.Response | None = None) -> None:
        self.response = response
        super().__init__(reason)


class Store(Protocol):
    """Where finished files go."""

    def put(self, file: OutgoingFile) -> StoredFile:
        """Deliver one file. Raises UploadRefused or UploadDelayed."""
        ...

    def complete(self) -> None:
        """Show what was put since the last call, all of it at once. Raises UploadRefused or UploadDelayed."""
        ...


class OutsideStore(Store, Protocol):
    """A store that is not the control plane's: a hub, a bucket, a folder."""

    @property
    def target(self) -> str:
        """The place by a name without secrets, such as `hub:ann/digits`."""
        ...

    @property
    def url(self) -> str | None:
        """Where people find what was delivered, if anywhere."""
        ...


class GatewayStore:
    """Streams files to `/api/cloud/storage/{bucket}/{prefix}/{name}` with their sha256 in a header."""

    def __init__(self, gateway: Gateway, bucket: str, prefix: str) -> None:
        self._gateway = gateway
        self._bucket = bucket
        self._prefix = prefix.strip("/")

    def put(self, file: OutgoingFile) -> StoredFile:
        """Deliver one file; a repeat of the same bytes is harmless."""
        stored = described(file, f"{self._prefix}/{file.name}")
        headers = {
            **self._gateway.headers(),
            "X-Upload-Token": self._gateway.token.value,
            "X-Content-SHA256": stored.sha256,
            "Content-Type": file.content_type,
            "Content-Length": str(stored.size_bytes),
        }
        path = f"/api/cloud/storage/{quote(self._bucket)}/{quote(stored.object_key)}"
        try:
            response = self._gateway.http.put(path, content=_chunks(file.path), headers=headers)
        except httpx.HTTPError as error:
            raise UploadDelayed(type(error).__name__) from error
        if response.is_success:
            return stored
        if response.status_code in UNAUTHORISED_STATUS:
            self._gateway.token.reread()
        if is_retryable(response.status_code):
            raise UploadDelayed(f"HTTP {response.status_code}", response)
        phrase = http.HTTPStatus(response.status_code).phrase
        raise UploadRefused(f"HTTP {response.status_code} {phrase}")

    def complete(self) -> None:
        """Nothing to do: each file is there once it is acknowledged."""


class LocalStore:
    """Leaves every file where it is; the object key is its path below the work folder."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir

    def put(self, file: OutgoingFile) -> StoredFile:
        """Describe the file without moving it."""
        return described(file, file.path.relative_to(self._work_dir).as_posix())

    def complete(self) -> None:
        """Nothing to do: every file is where it will stay."""


def described(file: OutgoingFile, object_key: str) -> StoredFile:
    """The file as a report names it, once it is stored under this key."""
    return StoredFile(
        name=file.name,
        object_key=object_key,
        sha256=sha256_of(file.path),
        size_bytes=file.path.stat().st_size,
        content_type=file.content_type,
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
