"""A dataset folder, or one file, as a tar whose bytes depend on names and contents alone.

Names are sorted, times are zero, owners are root: the same files give the same tar on every machine, so it has the same
address and is stored once.
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from services.storage.outbound.objects import BLOCK_BYTES

_RECORD_BYTES = 512
_END_OF_TAR = bytes(2 * _RECORD_BYTES)


class UnusableDataset(Exception):  # noqa: N818 - a finding about the person's files, not an error of ours
    """Why a folder cannot be packed, and what to do about it; both name the path."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Which directories datasets may come from; all paths are resolved."""

    roots: Sequence[Path]
    private: Sequence[Path] = ()
    """Neither these nor what holds or is inside them is ever packed."""

    def allow(self, path: Path) -> bool:
        """Whether a path is inside the roots."""
        return any(path.is_relative_to(root) for root in self.roots)

    def touch_private(self, path: Path) -> bool:
        """Whether a path is inside a private directory, or holds one."""
        return any(path.is_relative_to(own) or own.is_relative_to(path) for own in self.private)


class DatasetFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file: `name` inside the tar, `path` without symbolic links on this machine."""

    name: str
    path: Path
    size_bytes: int


def survey(folder: str, bounds: Bounds, max_bytes: int) -> list[DatasetFile]:
    """Every file of the folder, by name; of a file (rows as JSONL) that file.

    Symbolic links are followed while they stay inside the roots and out of private directories.

    Raises:
        UnusableDataset: it is missing, unreadable, empty, too large, outside the roots, private, or
            holds a special file or a link that leads out of the bounds.
    """
    real_path, found = _check_path(folder, bounds)
    if stat.S_ISDIR(found.st_mode):
        listed = _walk(real_path, "", bounds, (real_path,))
    else:
        listed = iter([DatasetFile(name=Path(folder).name, path=real_path, size_bytes=found.st_size)])
    files: list[DatasetFile] = []
    total_bytes = 0
    for file in listed:
        files.append(file)
        total_bytes += file.size_bytes
        if total_bytes > max_bytes:
            raise UnusableDataset(
                f"{folder} is larger than {max_bytes} bytes",
                "Use fewer or smaller files, or raise STORAGE_MAX_DATASET_BYTES.",
            )
    if not files:
        raise UnusableDataset(f"{folder} has no files in it", "Put the training files into this folder.")
    return sorted(files, key=lambda file: os.fsencode(file.name))


def tar_blocks(files: Sequence[DatasetFile]) -> Iterator[bytes]:
    """The tar in blocks of about a MiB. Reads the disk: not for an event loop.

    Raises:
        UnusableDataset: a file changed, vanished or became unreadable since the survey.
    """
    waiting = bytearray()
    for file in files:
        for piece in _tar_entry(file):
            waiting += piece
            if len(waiting) >= BLOCK_BYTES:
                yield bytes(waiting)
                waiting.clear()
    waiting += _END_OF_TAR
    yield bytes(waiting)


def _check_path(folder: str, bounds: Bounds) -> tuple[Path, os.stat_result]:
    allowed = ", ".join(str(root) for root in bounds.roots)
    if not folder.startswith("/") or "\0" in folder:
        raise UnusableDataset(f"{folder!r} is not an absolute path", "Write the whole path, starting with /.")
    try:
        real_folder = Path(folder).resolve(strict=True)
        found = real_folder.stat()
    except (OSError, RuntimeError) as error:
        raise UnusableDataset(
            f"{folder} cannot be opened on the storage machine: {_reason(error)}",
            "Check the path and its permissions; it must be readable by the storage service.",
        ) from error
    if not bounds.allow(real_folder):
        raise UnusableDataset(
            f"{folder} is outside the directories that datasets may come from",
            f"Move the dataset into {allowed}, or add its directory to STORAGE_DATASET_ROOTS.",
        )
    if bounds.touch_private(real_folder):
        raise UnusableDataset(
            f"{folder} is, holds or is inside a directory that Tunewright keeps for itself",
            "Move the dataset into a directory of its own.",
        )
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        advice = "Name the folder that holds the training files, or one file of rows."
        raise UnusableDataset(f"{folder} is neither a folder nor a file", advice)
    return real_folder, found


def _walk(folder: Path, prefix: str, bounds: Bounds, chain: tuple[Path, ...]) -> Iterator[DatasetFile]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UnusableDataset(
            f"{folder} cannot be read: {_reason(error)}", "Make the folder readable for the storage service."
        ) from error
    for entry in entries:
        name = f"{prefix}{entry.name}"
        path, found = _real(Path(entry.path), bounds)
        if stat.S_ISDIR(found.st_mode):
            if path in chain:
                raise UnusableDataset(f"{entry.path} leads back into itself", "Remove the symbolic link.")
            yield from _walk(path, f"{name}/", bounds, (*chain, path))
        elif stat.S_ISREG(found.st_mode):
            yield DatasetFile(name=name, path=path, size_bytes=found.st_size)
        else:
            raise UnusableDataset(
                f"{entry.path} is neither a file nor a folder",
                "Remove devices, sockets and pipes from the dataset.",
            )


def _real(path: Path, bounds: Bounds) -> tuple[Path, os.stat_result]:
    try:
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode):
            return path, found
        target = path.resolve(strict=True)
        found = target.stat()
    except (OSError, RuntimeError) as error:
        raise UnusableDataset(
            f"{path} cannot be opened: {_reason(error)}", "Mend or remove it, then submit again."
        ) from error
    if not bounds.allow(target) or bounds.touch_private(target):
        raise UnusableDataset(
            f"{path} is a symbolic link out of the directories that datasets may come from",
            "Copy the file into the dataset instead of linking to it.",
        )
    return target, found


def _tar_entry(file: DatasetFile) -> Iterator[bytes]:
    entry = tarfile.TarInfo(file.name)
    entry.size = file.size_bytes
    entry.mode = 0o644
    yield entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    left_bytes = file.size_bytes
    try:
        # A link put in the file's place since the survey is not followed, a pipe does not block.
        handle = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb", buffering=0) as source:
            while left_bytes and (piece := source.read(min(left_bytes, BLOCK_BYTES))):
                left_bytes -= len(piece)
                yield piece
            is_longer = bool(source.read(1)) if not left_bytes else False
    except OSError as error:
        raise UnusableDataset(
            f"{file.path} cannot be read: {_reason(error)}", "Make it readable for the storage service."
        ) from error
    if left_bytes or is_longer:
        raise UnusableDataset(
            f"{file.path} changed while it was being packed", "Submit again when nothing writes to the dataset."
        )
    yield bytes(-file.size_bytes % _RECORD_BYTES)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
