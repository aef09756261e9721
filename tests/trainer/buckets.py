"""A real S3 server program (moto's) on loopback that checks signatures, and a gate in front of it that can fail."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.embedded.process import free_port
from trainer.publish.credentials import BucketCredentials

BUCKET = "models"
_VENDORS = Path(__file__).parents[2] / ".venv-vendors" / "bin"
_SET_UP = """
import json, sys, boto3
def client(name): return boto3.client(name, endpoint_url=sys.argv[1], region_name="us-east-1",
                                      aws_access_key_id="setup", aws_secret_access_key="setup")
iam = client("iam")
iam.create_user(UserName="trainer")
key = iam.create_access_key(UserName="trainer")["AccessKey"]
allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=json.dumps(allowed))
client("s3").create_bucket(Bucket=sys.argv[2])
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""
_FREE_CALLS = "4"
"""As many as the set-up makes; every later one must be signed by somebody that IAM knows."""


@dataclass
class S3Server:
    """Where the server is, and the one pair of keys that may write."""

    port: int
    credentials: BucketCredentials

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def program(name: str) -> Path:
    """A vendor's program; the test is skipped where the vendors' environment was not made."""
    found = _VENDORS / name if (_VENDORS / name).exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not there; `just setup-vendors` makes its environment")
    return Path(found)


@contextmanager
def running_s3() -> Generator[S3Server]:
    """The server with one bucket and one user."""
    server, port = program("moto_server"), free_port()
    environ = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": _FREE_CALLS}
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        made = subprocess.run(
            [server.parent / "python", "-c", _SET_UP, f"http://127.0.0.1:{port}", BUCKET],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        yield S3Server(port, BucketCredentials(*json.loads(made.stdout)))
    finally:
        process.terminate()
        process.wait(timeout=20)


class Gate:
    """A port that leads to another one, unless it is shut, or told to answer by itself."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self.open = True
        self.answers: Callable[[bytes], bytes | None] = lambda _request: None
        """An answer to a request's first bytes in place of the server's."""
        self.bodies = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            first = client.recv(65536) if self.open else b""
            if not first:
                return
            self.bodies += first.startswith(b"PUT")
            if (answer := self.answers(first)) is not None:
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
                return
            with socket.create_connection(("127.0.0.1", self._behind)) as behind:
                behind.sendall(first)
                threading.Thread(target=_pump, args=(behind, client), daemon=True).start()
                _pump(client, behind)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("the S3 server did not start")
