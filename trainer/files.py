"""Hashes and atomic writes of files: used wherever bytes must arrive whole."""

import hashlib
import json
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_bytes(content)
    scratch.replace(path)


def settle_header(path: Path) -> None:
    """Sort the metadata of a safetensors file, in place: its library writes it in an order that differs by process.

    So the same tensors and the same facts are the same bytes. Positions of tensors do not change.
    """
    size_field_bytes = 8
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(size_field_bytes), "little")
        header = json.loads(stream.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        settled = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(settled) == length:
            stream.seek(size_field_bytes)
            stream.write(settled)
