"""The data directory: who may use it, what version it is, the secrets made in it, and what runs from it now."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from deploy.embedded.postgres_binaries import ROOT_HOME, server_user
from deploy.embedded.process import EmbeddedError, private_folder, write_private

DATA_VERSION = 1
POSTGRES = "postgres"
LEAST_FREE_BYTES = 200 * 1024 * 1024
_PRIVATE_FOLDERS = ("logs", "run", "nats", "objects", "bridge")
_LEFTOVER_S = 10.0


class Secrets(msgspec.Struct, kw_only=True):
    """Made once per data directory and never shown."""

    postgres: dict[str, str] = {}
    nats: dict[str, str] = {}
    storage_http_token: str = ""


class ProcessMark(msgspec.Struct, frozen=True, kw_only=True):
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    created: float


class RunState(msgspec.Struct, kw_only=True):
    """What runs from this directory now; the CLI reads it to find the gateway and the log."""

    supervisor: ProcessMark
    gateway_url: str
    nats_url: str
    log_dsn: str
    children: dict[str, ProcessMark] = {}


class DataDir:
    """One Tunewright's directory, held by at most one supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.logs = self.path / "logs"
        self.state_path = self.path / "run" / "state.json"
        self._lock: int | None = None

    def open(self) -> None:
        """Takes the directory for this process, or raises and leaves it as it was."""
        try:
            self._open()
        except OSError as error:
            raise EmbeddedError(f"cannot use {self.path} as data directory: {error}") from error

    def _open(self) -> None:
        self._check_version()
        fresh = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if fresh:  # as root, the user who runs Postgres must get through; what is private is closed below
            self.path.chmod(0o711 if server_user() else 0o700)
        self._take_lock()
        self._check_version()
        self._check_space(self.path)
        for name in _PRIVATE_FOLDERS:
            private_folder(self.path / name)
        if not (self.path / "version.json").exists():
            write_private(self.path / "version.json", json.dumps({"data_version": DATA_VERSION}))

    def close(self) -> None:
        """Gives the directory free; what says that it runs is removed."""
        self.state_path.unlink(missing_ok=True)
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def secrets(self, postgres_users: Iterable[str], nats_users: Iterable[str]) -> Secrets:
        """The secrets of this directory; what is missing is made and kept, what is there never changes."""
        kept = self.path / "secrets.json"
        found = msgspec.json.decode(kept.read_bytes(), type=Secrets) if kept.exists() else Secrets()
        for names, passwords in ((postgres_users, found.postgres), (nats_users, found.nats)):
            for name in names:
                passwords.setdefault(name, secrets.token_urlsafe(24))
        found.storage_http_token = found.storage_http_token or secrets.token_urlsafe(32)
        write_private(kept, msgspec.json.encode(found).decode())
        return found

    def postgres_home(self) -> Path:
        """Where the cluster lives: here, or in /var/lib if root's Postgres user cannot get here; decided once."""
        note = self.path / "postgres.path"
        if note.exists():
            return Path(note.read_text(encoding="utf-8"))
        home = self.path / "postgres"
        user = server_user()
        if user is not None and not home.exists() and not user.can_enter(home / "data"):
            home = ROOT_HOME / f"postgres-{secrets.token_hex(6)}"
            ROOT_HOME.mkdir(mode=0o711, parents=True, exist_ok=True)
            write_private(note, str(home))
        self._check_space(home if home.exists() else self.path)
        return home

    def is_full(self) -> bool:
        """Whether there is too little space for Postgres to go on; a quarter of what a start asks for."""
        return shutil.disk_usage(self.path).free < LEAST_FREE_BYTES // 4

    def write_state(self, state: RunState) -> None:
        """Says what runs now."""
        write_private(self.state_path, msgspec.json.encode(state).decode())

    def end_leftovers(self) -> None:
        """Ends what a killed supervisor left running on our ports, except local trainers, which are to go on.

        Postgres is left to EmbeddedPostgres, which knows how to end it.
        """
        if not self.state_path.exists():
            return
        try:
            state = msgspec.json.decode(self.state_path.read_bytes(), type=RunState)
        except msgspec.DecodeError:  # written by another version; the death signals have ended its children
            return
        marks = [mark for name, mark in state.children.items() if name != POSTGRES]
        left = [process for mark in marks if (process := find(mark)) is not None]
        _signal_all(left, psutil.Process.terminate)
        _, stuck = psutil.wait_procs(left, _LEFTOVER_S)
        _signal_all(stuck, psutil.Process.kill)
        psutil.wait_procs(stuck, _LEFTOVER_S)
        self.state_path.unlink()

    def _check_version(self) -> None:
        kept = self.path / "version.json"
        if not kept.exists():
            return
        version = json.loads(kept.read_text(encoding="utf-8"))["data_version"]
        if version > DATA_VERSION:
            raise EmbeddedError(
                f"{self.path} was written by a newer Tunewright (data version {version}, known here {DATA_VERSION}). "
                "Nothing was touched: use that version, or another --data-dir.",
            )

    def _take_lock(self) -> None:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode() or "unknown"
            os.close(lock)
            raise EmbeddedError(
                f"Tunewright already runs on {self.path} (process {holder}); stop it, or use another --data-dir.",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def _check_space(self, where: Path) -> None:
        free = shutil.disk_usage(where).free
        if free < LEAST_FREE_BYTES:
            raise EmbeddedError(
                f"the disk of {where} has {free // 1024**2} MB free; at least {LEAST_FREE_BYTES // 1024**2} MB are "
                "needed to start. Nothing was started.",
            )


def mark(pid: int) -> ProcessMark:
    """The mark of a process that runs now; of one that has just ended, a mark that finds nothing."""
    try:
        return ProcessMark(pid=pid, created=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return ProcessMark(pid=pid, created=0)


def find(mark: ProcessMark) -> psutil.Process | None:
    """The marked process if it still runs."""
    try:
        process = psutil.Process(mark.pid)
        return process if process.create_time() == mark.created else None
    except psutil.NoSuchProcess:
        return None


def _signal_all(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            send(process)
