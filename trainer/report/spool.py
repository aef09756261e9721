"""The append-only, numbered JSONL spool: the attempt's own record of itself, kept on disk until the end of time.

`seq` starts at 1 and has no gaps, also across a kill and a restart in the same folder: a half-written last line is cut
off when the spool is opened again, and its number is given to the next line.
"""

import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from shared.contracts.run import MAX_BATCH_BYTES, ReportLine

_DURABLE_TYPES = frozenset({"phase", "checkpoint", "artifact", "gpu_fault", "done", "failed"})
THIN_ABOVE_BYTES = 64 * 1024 * 1024


class _LineType(msgspec.Struct):
    type: str


class Spool:
    """One writer process, any number of threads. Opening it repairs a torn tail."""

    def __init__(self, folder: Path, job_id: str, attempt_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "events.jsonl"
        self._cursor_path = folder / "events.ack"
        self._job_id = job_id
        self._attempt_id = attempt_id
        self._lock = threading.Lock()
        self._ends: list[int] = []
        """Byte offset behind line i+1."""
        self.last_type: str | None = None
        self.types: set[str] = set()
        """Every type of line it holds."""
        self._repair()
        self._file = self.path.open("ab")
        self.acked = self._read_cursor()
        self.appended = threading.Condition(self._lock)

    @property
    def last_seq(self) -> int:
        """The number of the newest line; 0 when there is none."""
        return len(self._ends)

    @property
    def needs_thinning(self) -> bool:
        """The spool is so large that only every tenth metrics line should still be written."""
        return bool(self._ends) and self._ends[-1] > THIN_ABOVE_BYTES

    def append(self, report_type: str, data: dict[str, Any]) -> int:
        """Number, write and flush one line; the important types also reach the disk. Returns its seq."""
        with self.appended:
            line = ReportLine(
                job=self._job_id,
                attempt=self._attempt_id,
                seq=len(self._ends) + 1,
                ts=datetime.now(UTC),
                type=report_type,
                data=data,
            )
            encoded = msgspec.json.encode(line) + b"\n"
            self._file.write(encoded)
            self._file.flush()
            if report_type in _DURABLE_TYPES:
                os.fsync(self._file.fileno())
            self._ends.append((self._ends[-1] if self._ends else 0) + len(encoded))
            self.last_type = report_type
            self.types.add(report_type)
            self.appended.notify_all()
            return line.seq

    def read_after(self, seq: int, max_lines: int, max_bytes: int = MAX_BATCH_BYTES) -> list[bytes]:
        """The lines behind `seq`, newline included, up to both limits but at least one if there is one."""
        with self._lock:
            ends = self._ends
            start = ends[seq - 1] if seq else 0
            last = min(seq + max_lines, len(ends))
            while last > seq + 1 and ends[last - 1] - start > max_bytes:
                last -= 1
            if last <= seq:
                return []
            stop = ends[last - 1]
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start).splitlines(keepends=True)

    def acknowledge(self, seq: int) -> None:
        """Remember across restarts that the server has every line up to `seq`."""
        self.acked = min(max(seq, 0), self.last_seq)
        scratch = self._cursor_path.with_suffix(".tmp")
        scratch.write_text(str(self.acked), encoding="ascii")
        scratch.replace(self._cursor_path)

    def leave_outbox(self, path: Path) -> None:
        """Write the lines that were never acknowledged to `path`, or delete it when there are none."""
        if self.acked >= self.last_seq:
            path.unlink(missing_ok=True)
            return
        with self._lock:
            start = self._ends[self.acked - 1] if self.acked else 0
        with self.path.open("rb") as spool, path.open("wb") as outbox:
            spool.seek(start)
            shutil.copyfileobj(spool, outbox)

    def close(self) -> None:
        """Flush to disk and release the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _repair(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
        position = 0
        for line in whole.splitlines(keepends=True):
            position += len(line)
            self._ends.append(position)
            self.last_type = msgspec.json.decode(line, type=_LineType).type
            self.types.add(self.last_type)

    def _read_cursor(self) -> int:
        if not self._cursor_path.exists():
            return 0
        return min(int(self._cursor_path.read_text(encoding="ascii") or 0), self.last_seq)
