"""Child processes that cannot outlive their parent, and the ports and users they run with."""

import atexit
import ctypes
import errno
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_FIRST_PORT, _PORTS, _PORT_TRIES = 20_000, 12_000, 200
_MARKS = 64
# One server asks for two ports before it listens on either: the second must not be the first again.
_given: set[int] = set()
# Nor may another process be given a port before its server listens: the UDP port of that number is held meanwhile.
_marks: deque[socket.socket] = deque()
LOOPBACK = "127.0.0.1"


class EmbeddedError(Exception):
    """Something about this machine stops an embedded server; the message says what to do."""


@dataclass(frozen=True, slots=True)
class SystemUser:
    """The operating system user a child runs as."""

    name: str
    uid: int
    gid: int

    def can_enter(self, path: Path) -> bool:
        """Whether this user may pass every existing directory on the way to `path`."""
        return all(self._may_search(folder) for folder in path.absolute().parents if folder.exists())

    def _may_search(self, folder: Path) -> bool:
        found = folder.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        if found.st_gid == self.gid:
            return bool(found.st_mode & stat.S_IXGRP)
        return bool(found.st_mode & stat.S_IXOTH)


def free_port() -> int:
    """A loopback port nobody listens on now, that neither this process nor, lately, another one was given before.

    It is outside the range from which systems take outgoing ports: a client that keeps calling a server which is
    down could otherwise be given that very port, connect to itself, and keep the server from coming back.
    """
    for _ in range(_PORT_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        if port not in _given and port_is_free(LOOPBACK, port) and _mark(port):
            _given.add(port)
            return port
    raise EmbeddedError(f"no free port found between {_FIRST_PORT} and {_FIRST_PORT + _PORTS}")


def _mark(port: int) -> bool:
    """Whether a port was nobody's and is ours now, before anybody listens on it. The last `_MARKS` are held."""
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        mark.bind((LOOPBACK, port))
    except OSError:
        mark.close()
        return False
    _marks.append(mark)
    if len(_marks) > _MARKS:
        _marks.popleft().close()
    return True


@atexit.register
def _unmark() -> None:
    while _marks:
        _marks.pop().close()


def port_is_free(host: str, port: int) -> bool:
    """Whether a server may listen on this address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise EmbeddedError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return True


def _tie_to_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before exec so that the kernel signals it when its parent dies; Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return tie


def spawn(
    args: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    output: int,
    death_signal: signal.Signals,
    cwd: Path = Path("/"),
    run_as: SystemUser | None = None,
    pass_fds: Sequence[int] = (),
    niceness: int = 0,
) -> subprocess.Popen[bytes]:
    """Starts a child in a process group of its own that gets `death_signal` when this process dies.

    `output` is a file descriptor for what the child prints. Linux sends the death signal when the *thread* that
    forked ends, so children are only started from the main thread. `niceness` above 0 leaves the processors to others.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start children from the main thread: their lives are tied to the thread that forks them")
    child = subprocess.Popen(
        [str(arg) for arg in args],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
        pass_fds=pass_fds,
        user=run_as.uid if run_as else None,
        group=run_as.gid if run_as else None,
        extra_groups=[] if run_as else None,
        preexec_fn=_tie_to_parent(death_signal),  # noqa: PLW1509  # only calls prctl; the library is loaded before fork
    )
    if niceness:
        os.setpriority(os.PRIO_PROCESS, child.pid, niceness)
    return child


def wait_for_exit(child: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether the child ended within the time."""
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def write_private(path: Path, text: str, owner: SystemUser | None = None) -> None:
    """Replaces a file by one that only its owner may read; a reader sees the old text or the new one, never half."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if owner is not None:
        os.chown(fresh, owner.uid, owner.gid)
    fresh.replace(path)


def private_folder(path: Path, owner: SystemUser | None = None) -> Path:
    """The folder, made if missing, that only its owner may enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
    return path
