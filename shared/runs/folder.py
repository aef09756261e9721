"""The folder of one attempt on this machine: what each file means, and the two locks.

Shared by the runner and by whoever starts it: the bridge, or a worker's agent.

Standard library only: the runner must start fast and must not break with anything of ours.

    fence.lock   held for moments, by whoever reads or changes the files below as one step
    fence        the highest epoch that asked about this attempt; no lower one may start or stop anything
    start-<e>/   spec.json, token (0600) and launch.json of epoch e
    started.json claimed with O_EXCL before the trainer is started: there is one start, ever
    runner.lock  held by the runner and its trainer as long as one of them lives
    trainer.json the trainer's process, once there is one
    starts.jsonl one line per trainer process that was ever started: pid, birth, moment
    cancel.json  the wish to end, with its grace period
    exit.json    how the trainer ended
    trainer.log  what it printed, bounded (trainer.log.1 is the older half); runner.log: the runner's own trouble
    work/        the trainer's
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_RETRY_S = 0.01


class AttemptFolder:
    """Paths and atomic steps in one attempt's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started = root / "started.json"
        self.trainer = root / "trainer.json"
        self.starts = root / "starts.jsonl"
        self.cancel = root / "cancel.json"
        self.exit = root / "exit.json"
        self.log = root / "trainer.log"
        self.runner_log = root / "runner.log"
        self.runner_lock = root / "runner.lock"
        self.work = root / "work"
        self.spool = self.work / "events.jsonl"

    def start_folder(self, epoch: int) -> Path:
        """Where the inputs of one epoch's start lie."""
        return self.root / f"start-{epoch}"

    @contextmanager
    def fenced(self, timeout_s: float = 5.0) -> Generator[None]:
        """Makes the block one step for every process of this machine; TimeoutError if another does not let go."""
        descriptor = os.open(self.root / "fence.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, time.monotonic() + timeout_s)
            yield
        finally:
            os.close(descriptor)

    def fence(self) -> int:
        """The highest epoch seen, 0 at first. Call it inside `fenced`."""
        try:
            return int((self.root / "fence").read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0

    def raise_fence(self, epoch: int) -> bool:
        """Shuts out every lower epoch, durably; False if a higher one has done that to us. Call it inside `fenced`."""
        current = self.fence()
        if epoch > current:
            write_atomically(self.root / "fence", str(epoch))
        return epoch >= current

    def last_sign_of_life(self) -> datetime | None:
        """When the run last wrote something, as far as the disk remembers; None if it never did."""
        # The bridge writes to none of these. A living trainer's spool gets a heartbeat at least.
        written = [self.started, self.trainer, self.log, self.spool]
        moments = [path.stat().st_mtime for path in written if path.exists()]
        return datetime.fromtimestamp(max(moments), UTC) if moments else None

    def is_alive(self) -> bool:
        """Whether the runner or its trainer lives. Call it inside `fenced`, so that no starting runner is disturbed."""
        try:
            descriptor = os.open(self.runner_lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process holds the attempt's folder") from None
            time.sleep(_RETRY_S)
        else:
            return


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file, {} if a crash left it half written."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    with contextlib.suppress(json.JSONDecodeError):
        return dict(json.loads(text))
    return {}


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replaces a file; after the return the new text survives a power cut, and no reader ever sees half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    _write_all(descriptor, text)
    fresh.replace(path)
    _sync_folder(path.parent)


def claim(path: Path, text: str) -> bool:
    """Creates a file that was never there before, durably; False if it was."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    _write_all(descriptor, text)
    _sync_folder(path.parent)
    return True


def append_line(path: Path, text: str) -> None:
    """Adds a line, durably; earlier lines stay."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _write_all(descriptor, f"{text}\n")
    _sync_folder(path.parent)


def _write_all(descriptor: int, text: str) -> None:
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def process_start_ticks(pid: int) -> int | None:
    """When a process was born, in clock ticks since boot: with the pid it names one process for ever. Linux only."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
