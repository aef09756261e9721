"""Unpack what somebody else packed (tar, compressed tar, zip) without trusting it.

Everything is checked from the archive's listing before the first byte is written: names that leave the folder, links
and devices, encrypted or doubled entries, more entries or bytes than allowed, and a packing ratio that only an attack
has. While unpacking, an entry may not grow beyond what the listing said.
"""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from trainer.failures import AttemptFailed

_BLOCK_BYTES = 512
_CHUNK_BYTES = 1024 * 1024
_LONGEST_PART_BYTES = 255
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_COMPRESSED_TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_ENCRYPTED = 0x1
_NOISE = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})
"""What file managers leave in archives; never unpacked."""
_RETRY_DATASET = "Upload the dataset again and resubmit the job."
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the standard library raises for archives that are damaged or packed in a way it cannot read."""


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may hold. The ratio counts only above `ratio_floor_bytes`: small archives cannot hurt."""

    max_members: int = 2_000_000
    max_bytes: int = 1 << 40
    max_ratio: float = 100.0
    ratio_floor_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True)
class _Member:
    name: str
    size_bytes: int
    is_folder: bool
    is_plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack_safely(
    archive: Path, folder: Path, limits: ArchiveLimits | None = None, wanted_suffixes: frozenset[str] | None = None
) -> list[str]:
    """Unpack plain files and folders; returns the names left out because their suffix is not wanted.

    Raises AttemptFailed(bad_data), with nothing written, when the archive asks for anything else.
    """
    limits = limits or ArchiveLimits()
    try:
        with _opened(archive) as (members, allowed_bytes):
            checked = list(_checked(members, limits, min(limits.max_bytes, allowed_bytes(limits))))
            folder.mkdir(parents=True, exist_ok=True)
            return [member.name for member in checked if not _unpack(member, folder, wanted_suffixes)]
    except _BROKEN as error:
        raise _refused(f"cannot be read: {error or type(error).__name__}") from error


def is_archive(path: Path) -> bool:
    """Whether the first bytes are those of an archive that `unpack_safely` reads."""
    with path.open("rb") as stream:
        head = stream.read(_BLOCK_BYTES)
    return head.startswith((*_ZIP_MAGIC, *_COMPRESSED_TAR_MAGIC)) or head[257:262] == b"ustar"


@contextmanager
def _opened(archive: Path) -> Generator[tuple[Iterable[_Member], Callable[[ArchiveLimits], float]]]:
    """The members, and how many bytes they may hold together; the kind is told by content, not by name."""
    packed_bytes = archive.stat().st_size
    with archive.open("rb") as stream:
        head = stream.read(_BLOCK_BYTES)

    def by_ratio(limits: ArchiveLimits) -> float:
        return max(limits.ratio_floor_bytes, limits.max_ratio * packed_bytes)

    if head.startswith(_ZIP_MAGIC):
        with zipfile.ZipFile(archive) as packed:
            yield _zip_members(packed), by_ratio
        return
    compressed = head.startswith(_COMPRESSED_TAR_MAGIC)
    with tarfile.open(archive, mode="r:*" if compressed else "r:") as tar:
        yield _tar_members(tar), by_ratio if compressed else lambda _limits: packed_bytes


def _zip_members(packed: zipfile.ZipFile) -> Iterable[_Member]:
    for info in packed.infolist():
        if info.flag_bits & _ENCRYPTED:
            raise _refused(f"is encrypted: {info.filename!r}")
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = info.is_dir() or kind in {0, stat.S_IFREG}
        yield _Member(info.filename, info.file_size, info.is_dir(), plain, lambda info=info: packed.open(info))


def _tar_members(tar: tarfile.TarFile) -> Iterable[_Member]:
    for info in tar:
        size_bytes = info.size + _BLOCK_BYTES if info.isreg() else 0
        plain = info.isreg() or info.isdir()
        yield _Member(info.name, size_bytes, info.isdir(), plain, lambda info=info: tar.extractfile(info))


def _checked(members: Iterable[_Member], limits: ArchiveLimits, allowed_bytes: float) -> Iterable[_Member]:
    """Each member once it has passed; a compressed archive is read no further than to the first breach."""
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    total_bytes = 0
    for count, member in enumerate(members, 1):
        if count > limits.max_members:
            raise _refused(f"lists more than {limits.max_members} entries")
        total_bytes += member.size_bytes
        if total_bytes > allowed_bytes:
            raise _refused(f"claims more bytes than it holds or may hold ({int(allowed_bytes)})")
        path = _checked_path(member)
        if _NOISE & set(path.parts):
            continue
        if member.is_folder:
            folders.update((path, *path.parents))
        elif path in files:
            raise _refused(f"holds an entry twice: {member.name!r}")
        else:
            files.add(path)
            folders.update(path.parents)
        yield member
    if clash := files & folders:
        raise _refused(f"uses a name for a file and for a folder: {min(map(str, clash))!r}")


def _checked_path(member: _Member) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise _refused(f"names a file outside its folder: {member.name!r}")
    if any(len(part.encode()) > _LONGEST_PART_BYTES for part in path.parts):
        raise _refused(f"holds a name that is too long: {member.name[:60]!r}…")
    if not member.is_plain:
        raise _refused(f"holds something other than a file: {member.name!r}")
    return path


def _unpack(member: _Member, folder: Path, wanted_suffixes: frozenset[str] | None) -> bool:
    """One checked member, as a plain file or folder of ours; False if it is not wanted."""
    target = folder / member.name
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return True
    if wanted_suffixes is not None and target.suffix.lower() not in wanted_suffixes:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    content = member.open()
    if content is not None:
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK_BYTES)
    return True


def _refused(what: str) -> AttemptFailed:
    return AttemptFailed("bad_data", f"the dataset archive {what}", _RETRY_DATASET)
