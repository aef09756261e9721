"""The runner: starts the one trainer process of one attempt, watches it, ends it when asked, notes how it ended.

`python -m shared.runs.runner FOLDER EPOCH`, started in a new session, so it outlives its
starter; its trainer dies with it. Standard library only. It is the trainer's parent, so it alone signals it: a pid
cannot be reused before its parent has reaped it. The environment it gets is the trainer's.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from shared.runs.folder import (
    AttemptFolder,
    append_line,
    claim,
    process_start_ticks,
    read_json,
    write_atomically,
)

CLAIMED, ALREADY_CLAIMED, STALE_EPOCH, BROKEN = 0, 3, 4, 5
"""Exit codes of the launching half, the runner's answer to the bridge."""

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2
_SHUTDOWN_GRACE_S = 30.0
_CHUNK_BYTES = 64 * 1024
_LAST_LINES = 5
_LAST_WORDS_CHARS = 800
_CANNOT_EXECUTE = 127


def main(arguments: list[str]) -> int:
    """Starts the runner proper, which nobody waits for, and passes on its answer."""
    folder, epoch = AttemptFolder(Path(arguments[0])), int(arguments[1])
    answer, tell = os.pipe()
    if os.fork():
        os.close(tell)
        told = os.read(answer, 1)  # empty when the runner died before it could answer
        return told[0] if told else BROKEN
    os.close(answer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _run(folder, epoch, lambda code: _tell(tell, code))
    return 0


def _tell(descriptor: int, code: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the bridge is gone; the claim on disk will tell the next one
        os.write(descriptor, bytes([code]))
    os.close(descriptor)


def _run(folder: AttemptFolder, epoch: int, tell: Callable[[int], None]) -> None:
    lock = os.open(folder.runner_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with folder.fenced():
        answer = _claim(folder, epoch, lock)
    if answer != CLAIMED:
        tell(answer)
        return
    launch = read_json(folder.start_folder(epoch) / "launch.json") or {}
    code, last_words = _start_and_watch(folder, launch, lock, lambda: tell(CLAIMED))
    (folder.start_folder(epoch) / "token").unlink(missing_ok=True)
    ended = {"code": code, "ended_at": datetime.now(UTC).isoformat(), "last_words": last_words}
    write_atomically(folder.exit, json.dumps(ended))


def _claim(folder: AttemptFolder, epoch: int, lock: int) -> int:
    if folder.fence() > epoch:
        return STALE_EPOCH
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALREADY_CLAIMED
    pid = os.getpid()
    mine = {"epoch": epoch, "runner_pid": pid, "runner_born_ticks": process_start_ticks(pid)}
    return CLAIMED if claim(folder.started, json.dumps(mine)) else ALREADY_CLAIMED


def _start_and_watch(
    folder: AttemptFolder, launch: dict[str, Any], lock: int, started: Callable[[], None]
) -> tuple[int, str]:
    """The trainer's exit code (negative: by that signal) and its last words."""
    wake = _Wake()
    if folder.cancel.exists():
        started()
        return -signal.SIGTERM, "cancelled before the trainer was started"
    try:
        child = _spawn(launch, lock)
    except (OSError, KeyError) as error:
        started()
        return _CANNOT_EXECUTE, f"the trainer could not be started: {error!r}"
    born = process_start_ticks(child.pid)
    trainer = {"trainer_pid": child.pid, "trainer_born_ticks": born}
    append_line(folder.starts, json.dumps({**trainer, "started_at": datetime.now(UTC).isoformat()}))
    write_atomically(folder.trainer, json.dumps(trainer))
    started()
    log = _LogPump(child.stdout, folder.log, int(launch["log_limit_bytes"]))
    _watch(child, folder, wake)
    _kill_group(child.pid)  # what it left behind; the number is still its own, as nobody has reaped it
    code = child.wait()
    return code, log.last_words()


def _spawn(launch: dict[str, Any], lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the bridge wrote the command
        launch["argv"],
        cwd=launch["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        pass_fds=(lock,),  # the run counts as alive as long as its trainer does
        preexec_fn=_die_with_parent(),  # noqa: PLW1509 - only calls prctl; no thread exists yet
    )


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


class _Wake:
    """Something to wait on that ends early when the trainer ends or the machine shuts down."""

    def __init__(self) -> None:
        self.shutdown = False
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._on_child)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_child(self, *_: object) -> None:
        pass  # the wakeup descriptor has what matters

    def _on_term(self, *_: object) -> None:
        self.shutdown = True

    def wait(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self.reader], [], [], timeout_s)
        if ready:
            self.reader.recv(4096)


def _watch(child: subprocess.Popen[bytes], folder: AttemptFolder, wake: _Wake) -> None:
    """Returns when the trainer has ended, not yet reaped. Asked to stop: SIGTERM once, then SIGKILL to its group."""
    kill_at: float | None = None
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if kill_at is None and (grace_s := _asked_to_stop(folder, wake)) is not None:
            # Only the trainer itself: its workers are its own to end, and a second SIGTERM means "at once" to it.
            os.kill(child.pid, signal.SIGTERM)
            kill_at = time.monotonic() + grace_s
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill_group(child.pid)
        wake.wait(_LOOK_S)


def _asked_to_stop(folder: AttemptFolder, wake: _Wake) -> float | None:
    asked = read_json(folder.cancel)
    if asked is not None:
        return float(asked.get("grace_s", _SHUTDOWN_GRACE_S))
    return _SHUTDOWN_GRACE_S if wake.shutdown else None


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


class _LogPump(threading.Thread):
    """Copies what the trainer prints to a file, of which at most `limit_bytes` stay on disk, in two halves."""

    def __init__(self, source: IO[bytes] | None, path: Path, limit_bytes: int) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._path = path
        self._half_bytes = max(1, limit_bytes // 2)
        self._tail: deque[bytes] = deque(maxlen=2)
        self.start()

    def run(self) -> None:
        if self._source is None:
            return
        file = self._path.open("ab", buffering=0)
        written = 0
        while chunk := os.read(self._source.fileno(), min(_CHUNK_BYTES, self._half_bytes)):
            if written + len(chunk) > self._half_bytes:
                file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                file, written = self._path.open("ab", buffering=0), 0
            file.write(chunk)
            written += len(chunk)
            self._tail.append(chunk)
        file.close()

    def last_words(self) -> str:
        """The last lines printed, when the pipe is at its end."""
        self.join(timeout=5)
        text = b"".join(self._tail).decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_LINES:])[-_LAST_WORDS_CHARS:]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
