"""The parts of supervision that need no servers: logs, restart policy, addresses."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.embedded.child_log import KEPT_FILES, ChildLog, RotatedFile
from deploy.embedded.process import spawn
from deploy.embedded.stack import role_dsn
from deploy.embedded.supervisor import GaveUp, Program, RestartPolicy, Supervisor


def test_full_log_moves_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    log = RotatedFile(tmp_path / "x.log", largest_bytes=10)
    for number in range(2 * KEPT_FILES):
        log.write(f"line {number:04}\n".encode())
    log.write(b"last\n")
    log.close()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["x.log", *(f"x.log.{number}" for number in range(1, KEPT_FILES + 1))]
    assert (tmp_path / "x.log").read_bytes() == b"last\n"
    assert (tmp_path / "x.log.1").read_bytes() == b"line 0005\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_log_that_the_disk_refuses_is_counted_and_nothing_raises() -> None:
    log = RotatedFile(Path("/dev/full"))
    log.write(b"lost\n")
    log.close()
    assert log.dropped_bytes == 5


def test_child_log_remembers_the_last_lines_and_waits_for_unfinished_ones(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "x.log")
    os.write(log.writing_end, b"one\ntwo\nthr")
    log.pump()
    assert log.tail == "one\ntwo"
    os.write(log.writing_end, b"ee\n")
    log.close()
    assert log.tail == "one\ntwo\nthree"
    assert (tmp_path / "x.log").read_bytes() == b"one\ntwo\nthree\n"


def test_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy()
    assert [policy.delay_s(deaths) for deaths in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://postgres:p%40w@/postgres?host=/run/s&port=5433",
        "postgresql://root@db.example:5432/other?sslmode=require",
    ],
)
def test_role_dsn_changes_user_password_and_database_only(dsn: str) -> None:
    made, given = urlsplit(role_dsn(dsn, "billing", "a@b/c", "tunewright")), urlsplit(dsn)
    assert (made.username, made.password, made.path) == ("billing", "a%40b%2Fc", "/tunewright")
    assert (made.hostname, made.port, made.query) == (given.hostname, given.port, given.query)


def python_program(code: str, ready_timeout_s: float = 60) -> Program:
    def start(output: int) -> subprocess.Popen[bytes]:
        return spawn([sys.executable, "-c", code], env=os.environ, output=output, death_signal=signal.SIGTERM)

    return Program(name="p", stage=0, spawn=start, ready_timeout_s=ready_timeout_s, is_ready=lambda: False)


async def test_program_that_lives_but_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    spawned: list[int] = []
    supervisor = Supervisor(
        tmp_path,
        say=lambda _text: None,
        on_spawn=lambda _name, pid: spawned.append(pid),
        disk_is_full=lambda: False,
    )
    with pytest.RaisesGroup(pytest.RaisesExc(GaveUp, match="p was not ready within 0 s")):
        async with asyncio.TaskGroup() as group:
            try:
                await supervisor.start(group, [python_program("import signal; signal.pause()", ready_timeout_s=0.2)])
            finally:
                await supervisor.stop()
    assert len(spawned) == 1


async def test_deaths_on_a_full_disk_do_not_count(tmp_path: Path) -> None:
    full = True
    said: list[str] = []

    def say(text: str) -> None:
        nonlocal full
        said.append(text)
        full = len(said) < 8

    supervisor = Supervisor(
        tmp_path,
        say=say,
        on_spawn=lambda _name, _pid: None,
        disk_is_full=lambda: full,
        policy=RestartPolicy(longest_delay_s=0.01, first_delay_s=0.01),
    )
    with pytest.RaisesGroup(pytest.RaisesExc(GaveUp, match="exit code 4, too often")):
        async with asyncio.TaskGroup() as group:
            try:
                await supervisor.start(group, [python_program("raise SystemExit(4)")])
                await asyncio.Event().wait()
            finally:
                await supervisor.stop()
    assert sum("disk is full" in line for line in said) == 8
    assert sum("starting it again" in line for line in said) == 4
