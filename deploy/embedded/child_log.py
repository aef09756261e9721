"""What children print, kept in files that cannot grow without end and cannot stop the child."""

import os
from collections import deque
from pathlib import Path

LARGEST_BYTES = 10 * 1024 * 1024
KEPT_FILES = 3
TAIL_LINES = 20
_CHUNK = 64 * 1024
_CHUNKS_AT_ONCE = 16


class RotatedFile:
    """An append-only file that moves to `.1`, `.2`, … when it is full. A full disk loses lines and nothing else."""

    def __init__(self, path: Path, *, largest_bytes: int = LARGEST_BYTES) -> None:
        self.path = path
        self.dropped_bytes = 0
        self._largest = largest_bytes
        self._file: int | None = None
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Appends, or counts what the disk refused."""
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._size = os.fstat(self._file).st_size
            self._size += os.write(self._file, chunk)
            if self._size >= self._largest:
                self._rotate()
        except OSError:  # a full or broken disk must not stop the supervisor, which is what can still report it
            self.dropped_bytes += len(chunk)

    def close(self) -> None:
        """Closes the file; a later write opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rotate(self) -> None:
        self.close()
        for number in range(KEPT_FILES, 1, -1):
            younger = self._numbered(number - 1)
            if younger.exists():
                younger.replace(self._numbered(number))
        self.path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


class ChildLog:
    """One child's output, read from a pipe.

    Children write into the pipe and not into the file, so that rotation loses no line and a disk that refuses the
    log refuses it to us instead of raising inside a service.
    """

    def __init__(self, path: Path) -> None:
        self._file = RotatedFile(path)
        self._recent: deque[str] = deque(maxlen=TAIL_LINES)
        self._unfinished = b""
        self.reading_end, self.writing_end = os.pipe()
        os.set_blocking(self.reading_end, False)

    @property
    def path(self) -> Path:
        """The newest file."""
        return self._file.path

    @property
    def tail(self) -> str:
        """The last lines printed."""
        return "\n".join(self._recent)

    def pump(self) -> None:
        """Moves what waits in the pipe to the file; a flood is taken in portions, so that it stops nobody else."""
        for _ in range(_CHUNKS_AT_ONCE):
            try:
                chunk = os.read(self.reading_end, _CHUNK)
            except BlockingIOError:
                return
            self._take(chunk)

    def write_line(self, line: str) -> None:
        """Adds a line of the supervisor's own."""
        self._take(f"{line}\n".encode())

    def close(self) -> None:
        """Takes what is left and closes the pipe and the file."""
        self.pump()
        os.close(self.reading_end)
        os.close(self.writing_end)
        self._file.close()

    def _take(self, chunk: bytes) -> None:
        *lines, rest = (self._unfinished + chunk).split(b"\n")
        self._unfinished = rest[-_CHUNK:]
        self._recent.extend(line.decode(errors="replace") for line in lines)
        self._file.write(chunk)
