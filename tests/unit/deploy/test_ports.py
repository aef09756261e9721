"""A port is given to one asker, in whichever process it asks."""

import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.embedded import process
from deploy.embedded.process import EmbeddedError, free_port

ROOT = Path(__file__).resolve().parents[3]
PORTS = 6
TAKE_HALF = """
import sys
from deploy.embedded import process
process._FIRST_PORT, process._PORTS = int(sys.argv[1]), int(sys.argv[2])
print(*[process.free_port() for _ in range(process._PORTS // 2)], flush=True)
sys.stdin.read()
"""


def all_that_are_left() -> set[int]:
    """Every port that this process is given."""
    given: set[int] = set()
    with suppress(EmbeddedError):
        while True:
            given.add(free_port())
    return given


def test_ports_given_to_a_living_process_that_does_not_listen_yet_are_given_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = 12_000 + secrets.randbelow(7_000)  # beside the ports that other tests are given
    monkeypatch.setattr(process, "_FIRST_PORT", first)
    monkeypatch.setattr(process, "_PORTS", PORTS)
    command = [sys.executable, "-c", TAKE_HALF, str(first), str(PORTS)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = {int(port) for port in other.stdout.readline().split()}
        ours = all_that_are_left()
        assert len(theirs) == PORTS // 2
        assert ours
        assert ours.isdisjoint(theirs)
        assert other.stdin is not None
        other.stdin.close()
