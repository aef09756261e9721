"""A real Postgres as a direct child: made once, started in a tenth of a second, stopped cleanly, never orphaned."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

import psutil

from deploy.embedded.postgres_binaries import find_binaries, reachable_binaries, server_user
from deploy.embedded.process import (
    LOOPBACK,
    EmbeddedError,
    free_port,
    private_folder,
    spawn,
    wait_for_exit,
    write_private,
)

SUPERUSER = "postgres"
_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "logging_collector": "off",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",  # our queries are short; compiling them costs more than it saves
    "max_connections": "200",  # six processes with pools of sixteen, and people
}
_UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_LONGEST_SOCKET_PATH = 107
_READY_LINE = 7  # the eighth line of postmaster.pid
_POLL_S = 0.005
_STOP_S = 30.0


class EmbeddedPostgres:
    """One Postgres cluster in a directory; at most one server of it runs, and it dies with this process.

    `data_dir` holds `data` (the cluster), `superuser.password` and `postgres.log`. When this process is root the
    server runs as user `postgres` or `nobody`, which must be able to reach `data_dir`. `unsafe_fast` turns
    durability off and is for tests only.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        unsafe_fast: bool = False,
        superuser_password: str | None = None,
    ) -> None:
        self.home = data_dir.absolute()
        self.cluster = self.home / "data"
        self.log_path = self.home / "postgres.log"
        self.user = server_user()
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._unsafe_fast = unsafe_fast
        self._given_password = superuser_password
        self._binaries = reachable_binaries(find_binaries(os.environ), self.user)
        self._socket_dir: Path | None = None

    @property
    def superuser_password(self) -> str:
        """The password given, or the one made at the first start and kept in a private file."""
        if self._given_password is not None:
            return self._given_password
        kept = self.home / "superuser.password"
        if not kept.exists():
            self._make_home()
            write_private(kept, secrets.token_urlsafe(24))
        return kept.read_text(encoding="utf-8")

    @property
    def superuser_dsn(self) -> str:
        """How the superuser connects to the database `postgres`."""
        return self.dsn(SUPERUSER, self.superuser_password, "postgres")

    @property
    def socket_dir(self) -> Path:
        """A private folder for the Unix socket; a temporary one where the path is too long or holds a comma."""
        if self._socket_dir is None:
            self._make_home()
            near = self.home / "s"
            fits = len(os.fsencode(near / f".s.PGSQL.{self.port}.lock")) <= _LONGEST_SOCKET_PATH and "," not in str(
                near
            )
            self._socket_dir = private_folder(near if fits else Path(tempfile.mkdtemp(prefix="tw-pg-")), self.user)
        return self._socket_dir

    def dsn(self, user: str, password: str, database: str, *, tcp: bool = False) -> str:
        """A connection URL for asyncpg or libpq: through the Unix socket, which is faster, or over loopback TCP."""
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        if tcp:
            return f"postgresql://{who}@{LOOPBACK}:{self.port}/{quote(database)}"
        where = urlencode({"host": str(self.socket_dir), "port": self.port})
        return f"postgresql://{who}@/{quote(database)}?{where}"

    def initialise(self) -> None:
        """Makes the cluster if there is none; a half-made one from an earlier crash is thrown away first."""
        if self.cluster.exists():
            return
        self._make_home()
        half, password_file = self.home / "data.new", self.home / "initdb.password"
        shutil.rmtree(half, ignore_errors=True)
        private_folder(half, self.user)
        write_private(password_file, self.superuser_password, self.user)
        try:
            self._run_initdb(half, password_file)
        finally:
            password_file.unlink()
        half.rename(self.cluster)

    def spawn(self, output: int | None = None) -> subprocess.Popen[bytes]:
        """Starts the server and returns at once; `output` takes its log instead of `postgres.log`."""
        self.initialise()
        self._clear_leftovers()
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if output is None else output
        settings = _SETTINGS | {"port": str(self.port), "unix_socket_directories": str(self.socket_dir)}
        if self._unsafe_fast:
            settings |= _UNSAFE
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        try:
            self.process = spawn(
                [self._binaries / "postgres", "-D", self.cluster, *arguments],
                env=_ENV,
                output=log,
                death_signal=signal.SIGINT,
                run_as=self.user,
            )
        finally:
            if output is None:
                os.close(log)
        return self.process

    def is_ready(self) -> bool:
        """Whether our server, and not an earlier one, says it takes connections."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        ours = self.process is not None and lines[:1] == [str(self.process.pid)]
        return ours and len(lines) > _READY_LINE and lines[_READY_LINE].strip() == "ready"

    def start(self, timeout_s: float = 60.0) -> Self:
        """Starts the server and returns when it takes connections; raises with its log if it does not."""
        child = self.spawn()
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log_path.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise EmbeddedError(f"Postgres did not start; the end of {self.log_path}:\n{tail}")
            time.sleep(_POLL_S)
        return self

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """Stops the server after rolling open transactions back; after `timeout_s` it is told to quit at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            if not wait_for_exit(self.process, timeout_s):
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(timeout_s)
        if self._socket_dir is not None and self._socket_dir.parent != self.home:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def _make_home(self) -> None:
        fresh = not self.home.exists()
        self.home.mkdir(parents=True, exist_ok=True)
        if self.user is None:
            return
        if fresh:  # whatever the umask, the user who runs the server must get through
            self.home.chmod(0o711)
        if not self.user.can_enter(self.cluster):
            raise EmbeddedError(
                f"Postgres refuses to run as root and user {self.user.name} cannot enter {self.home}; "
                "choose a data directory that this user can reach, such as /var/lib/tunewright",
            )

    def _run_initdb(self, target: Path, password_file: Path) -> None:
        command = [
            *(str(self._binaries / "initdb"), "-D", str(target), "-U", SUPERUSER),
            *("--pwfile", str(password_file), "--auth-local=scram-sha-256", "--auth-host=scram-sha-256"),
            *("-E", "UTF8", "--locale=C.UTF-8", "--data-checksums"),
            *(["--no-sync"] if self._unsafe_fast else []),
        ]
        done = subprocess.run(
            command,
            env=_ENV,
            cwd="/",
            user=self.user.uid if self.user else None,
            group=self.user.gid if self.user else None,
            extra_groups=[] if self.user else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EmbeddedError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _clear_leftovers(self, timeout_s: float = 10.0) -> None:
        """Ends what is left of an earlier server of this cluster and removes its pid file and sockets.

        Every Postgres process works in its cluster's folder, which tells ours from a stranger that got its pid.
        """
        left = [process for process in psutil.process_iter() if self._works_in_cluster(process)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                if process.ppid() not in {other.pid for other in left}:
                    process.send_signal(signal.SIGINT)
        _, stuck = psutil.wait_procs(left, timeout_s)
        for process in stuck:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)
        _, stuck = psutil.wait_procs(stuck, timeout_s)
        if stuck:
            raise EmbeddedError(f"an earlier Postgres of {self.cluster} does not stop: {[p.pid for p in stuck]}")
        for stale in (self.cluster / "postmaster.pid", *self.socket_dir.iterdir()):
            stale.unlink(missing_ok=True)

    def _works_in_cluster(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and process.cwd() == str(self.cluster.resolve())
        except psutil.Error:  # it ended, or it belongs to somebody else
            return False
