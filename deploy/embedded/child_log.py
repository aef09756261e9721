"""What a child prints, kept in a file that cannot grow without end and cannot stop the child."""

import os
from collections import deque
from pathlib import Path

LARGEST_BYTES = 10 * 1024 * 1024
KEPT_FILES = 3
TAIL_LINES = 20
_CHUNK = 64 * 1024


class ChildLog:
    """One log file, rotated by size, fed from a pipe. A full disk loses lines here and nothing else.

    Children write into the pipe and not into the file, so that rotation loses no line and a disk that refuses the
    log refuses it to us instead of raising inside a service.
    """

    def __init__(self, path: Path, *, largest_bytes: int = LARGEST_BYTES) -> None:
        self.path = path
        self.dropped_bytes = 0
        self._largest = largest_bytes
        self._recent: deque[str] = deque(maxlen=TAIL_LINES)
        self._unfinished = b""
        self._file: int | None = None
        self._size = 0
        self.reading_end, self.writing_end = os.pipe()
        os.set_blocking(self.reading_end, False)

    @property
    def tail(self) -> str:
        """The last lines printed."""
        return "\n".join(self._recent)

    def pump(self) -> None:
        """Moves what waits in the pipe to the file."""
        while chunk := self._read():
            self._remember(chunk)
            self._store(chunk)

    def write_line(self, line: str) -> None:
        """Adds a line of the supervisor's own."""
        chunk = f"{line}\n".encode()
        self._remember(chunk)
        self._store(chunk)

    def close(self) -> None:
        """Takes what is left and closes the pipe and the file."""
        self.pump()
        for descriptor in (self.reading_end, self.writing_end, self._file):
            if descriptor is not None:
                os.close(descriptor)
        self._file = None

    def _read(self) -> bytes:
        try:
            return os.read(self.reading_end, _CHUNK)
        except BlockingIOError:
            return b""

    def _remember(self, chunk: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        self._unfinished = self._unfinished[-_CHUNK:]
        self._recent.extend(line.decode(errors="replace") for line in lines)

    def _store(self, chunk: bytes) -> None:
        try:
            if self._size + len(chunk) > self._largest:
                self._rotate()
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._size = os.fstat(self._file).st_size
            self._size += os.write(self._file, chunk)
        except OSError:  # a full or broken disk must not stop the supervisor, which is what can still report it
            self.dropped_bytes += len(chunk)

    def _rotate(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._size = 0
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        if self.path.exists():
            self.path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
