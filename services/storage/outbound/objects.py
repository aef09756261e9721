"""The object store: immutable contents addressed by their SHA-256, on a local disk or behind any URL obstore knows.

An address is `<family>/sha256/<hex>`. Bytes are written under a name nobody reads and get their address when they are
whole, so a reader sees all of an object or nothing of it. Only this module calls obstore.
"""

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import msgspec
import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from shared.ids import new_id
from shared.problems import Rejected, Unavailable
from shared.slots import Slot

BLOCK_BYTES = 1024 * 1024
"""One thread hop per MiB: fewer would block the loop on a slow disk, more cost a third of the speed."""
PART_BYTES = 8 * 1024 * 1024
INCOMING = "incoming"
WRITERS = "writers"

log = structlog.stdlib.get_logger()


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """One stored content."""

    sha256: str
    md5: str
    size_bytes: int


class _Intake:
    """Counts and digests what flows through; `md5` is skipped where no S3 client will ever compare it."""

    def __init__(self, *, with_md5: bool) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None

    def take(self, block: bytes) -> None:
        self.size_bytes += len(block)
        self._sha256.update(block)
        if self._md5 is not None:
            self._md5.update(block)

    def blob(self) -> Blob:
        md5 = self._md5.hexdigest() if self._md5 is not None else ""
        return Blob(sha256=self._sha256.hexdigest(), md5=md5, size_bytes=self.size_bytes)


class Objects:
    """Puts, finds and reads contents by address. Memory stays flat whatever the size of an object."""

    def __init__(
        self, store: ObjectStore, *, local_root: Path | None, min_free_bytes: int, incoming: str = INCOMING
    ) -> None:
        self._store = store
        self._local_root = local_root
        self._incoming = incoming
        self._min_free_bytes = min_free_bytes

    @classmethod
    def open(cls, *, root: str, url: str, min_free_bytes: int) -> "Objects":
        """The store behind `url`, or the directory `root` when `url` is empty.

        Processes that share a directory write at places of their own; what dead ones left half written is removed.
        """
        if url:
            return cls(from_url(url), local_root=None, min_free_bytes=min_free_bytes)
        local_root = Path(root).absolute()
        local_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        slot = Slot.claim(local_root / WRITERS)  # held until this process ends, however it ends
        if removed := _remove_leftovers(local_root, slot):
            log.info("storage.leftovers.removed", files=removed)
        incoming = f"{INCOMING}/{slot.number}"
        return cls(LocalStore(local_root), local_root=local_root, min_free_bytes=min_free_bytes, incoming=incoming)

    async def put(
        self,
        family: str,
        blocks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        expected_size_bytes: int | None = None,
        with_md5: bool = True,
    ) -> Blob:
        """Stores one content under its digest, durably; the same content is stored once.

        Raises:
            Rejected: `digest_mismatch`, or `storage_full`; nothing is stored then, nor if `blocks` raises.
            Unavailable: the object store does not answer.
        """
        self._check_room(expected_size_bytes or 0)
        intake = _Intake(with_md5=with_md5)
        incoming = f"{self._incoming}/{new_id()}"
        checked = self._checked(blocks, intake, expected_sha256, expected_size_bytes)
        try:
            await obstore.put_async(
                self._store, incoming, checked, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=2
            )
        except (OSError, BaseError) as error:
            raise _translated(error) from error
        blob = intake.blob()
        await self._give_address(incoming, address(family, blob.sha256), blob.size_bytes)
        return blob

    async def size(self, where: str) -> int | None:
        """Bytes of the object at an address; None when there is none. Unavailable when the store does not answer."""
        try:
            return (await obstore.head_async(self._store, where))["size"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise _translated(error) from error

    async def read(self, where: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Bytes `start` to `end` (not included) of the object at an address, in blocks of about a MiB."""
        if start == end:
            return
        found = await obstore.get_async(self._store, where, options={"range": (start, end)})
        async for block in found.stream(min_chunk_size=BLOCK_BYTES):
            yield bytes(block)

    async def _checked(
        self,
        blocks: AsyncIterator[bytes],
        intake: _Intake,
        expected_sha256: str | None,
        expected_size_bytes: int | None,
    ) -> AsyncGenerator[bytes]:
        async for block in gathered(blocks):
            await asyncio.to_thread(intake.take, block)
            self._check_room(len(block))
            yield block
        blob = intake.blob()
        if expected_size_bytes is not None and blob.size_bytes != expected_size_bytes:
            raise Rejected(
                "digest_mismatch", f"{expected_size_bytes} bytes were announced, {blob.size_bytes} bytes arrived"
            )
        if expected_sha256 is not None and blob.sha256 != expected_sha256:
            raise Rejected(
                "digest_mismatch", f"the bytes have SHA-256 {blob.sha256}, not {expected_sha256}", sha256=blob.sha256
            )

    async def _give_address(self, incoming: str, where: str, size_bytes: int) -> None:
        already_there = await self.size(where) == size_bytes
        if not already_there and self._local_root is not None:
            await asyncio.to_thread(_sync_file, self._local_root / incoming)
        try:
            if already_there:
                await obstore.delete_async(self._store, incoming)
                return
            await obstore.rename_async(self._store, incoming, where)
        except (OSError, BaseError) as error:
            raise _translated(error) from error
        if self._local_root is not None:
            await asyncio.to_thread(_sync_file, (self._local_root / where).parent)

    def _check_room(self, size_bytes: int) -> None:
        if self._local_root is None:
            return
        free_bytes = shutil.disk_usage(self._local_root).free
        if free_bytes - size_bytes < self._min_free_bytes:
            raise _storage_full(free_bytes)


def address(family: str, sha256: str) -> str:
    """Where a content lives: `outputs/sha256/<hex>` or `datasets/sha256/<hex>`."""
    return f"{family}/sha256/{sha256}"


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in blocks of at least a MiB, but for the last one."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= BLOCK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def off_loop(blocks: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """Blocks of an iterator that reads a disk, one thread hop each."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block


def _storage_full(free_bytes: int | None) -> Rejected:
    room = "" if free_bytes is None else f" ({free_bytes} bytes are free)"
    return Rejected("storage_full", f"the object store has no room for this{room}; free some space and try again")


def _translated(error: Exception) -> Exception:
    """storage_full for a full disk, whose error obstore wraps in text; Unavailable for a store that does not answer."""
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT} or "No space left on device" in str(error):
        return _storage_full(None)
    if isinstance(error, BaseError):
        return Unavailable("the object store does not answer")
    return error


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(local_root: Path, own: Slot) -> int:
    """Empties the places of writers that live no more, our own predecessor's among them; answers how many files."""
    removed = 0
    for folder in (local_root / INCOMING).glob("*"):
        if not folder.name.isdigit():
            continue
        number = int(folder.name)
        slot = own if number == own.number else Slot.take(local_root / WRITERS, number)
        if slot is None:
            continue
        removed += sum(1 for _ in folder.iterdir())
        shutil.rmtree(folder)
        if slot is not own:
            slot.release()
    return removed
