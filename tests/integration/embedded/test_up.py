"""`tunewright up` from first start to any end, with real servers and small real children in place of the services."""

import dataclasses
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest

from deploy.embedded.nats import EmbeddedNats, find_nats_server
from deploy.embedded.postgres import EmbeddedPostgres
from tests.conftest import NATS_USER
from tests.integration.embedded.harness import DEADLINE_S, REPOSITORY, Up, wait_until

SERVICES = {"relay", "storage", "billing", "provider_bridge", "scheduler", "gateway"}
pytestmark = pytest.mark.timeout(300)  # whole systems, several times over, on machines that have other work
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else or to mount")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tw-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_up(short_dir: Path) -> Iterator[Callable[..., Up]]:
    made: list[Up] = []

    def make(**fields: Any) -> Up:
        made.append(dataclasses.replace(Up(data_dir=short_dir / "data"), **fields))
        return made[-1]

    yield make
    for up in made:
        up.end()


async def query(dsn: str, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


def gateway_environment(up: Up) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
    connection.request("GET", "/environment")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def snapshot(path: Path) -> dict[str, tuple[bytes, float]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime) for file in path.rglob("*") if file.is_file()}


async def answers(dsn: str) -> bool:
    try:
        return await query(dsn, "SELECT 1") == 1
    except (OSError, asyncpg.PostgresError):
        return False


async def test_first_start_makes_private_secrets_and_configures_children_by_environment(
    make_up: Callable[..., Up],
) -> None:
    up = make_up().start()
    assert set(up.pids) == SERVICES | {"postgres", "nats"}
    for private in ("secrets.json", "run/state.json"):
        assert stat.S_IMODE((up.data_dir / private).stat().st_mode) == 0o600
    told = gateway_environment(up)
    assert told["NATS_USER"] == "gateway"
    assert told["NATS_PASSWORD"] == up.secrets["nats"]["gateway"]
    assert told["TUNEWRIGHT_DATA_DIR"] == str(up.data_dir)
    assert told["GATEWAY_PORT"] == str(up.port)
    assert told["GATEWAY_STORAGE_TOKEN"] == up.secrets["storage_http_token"]
    assert await query(told["DATABASE_URL"], "SELECT current_user || ' in ' || current_database()") == (
        "gateway in tunewright"
    )
    assert await query(up.state["log_dsn"], "SELECT current_user") == "inspector"
    assert f"http://127.0.0.1:{up.port}" in up.output


def test_stop_goes_from_the_gateway_to_postgres(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    up.until_children_are_up(SERVICES)
    pids = up.pids
    assert up.stop() == 0
    ends = up.journal()
    assert ends[0]["name"] == "gateway"
    assert ends[-1]["name"] == "relay"
    assert {end["name"] for end in ends} == SERVICES
    assert all(end["postgres"] and end["nats"] for end in ends)
    nats_log = (up.data_dir / "logs" / "nats.log").read_text(encoding="utf-8")
    postgres_log = (up.data_dir / "logs" / "postgres.log").read_text(encoding="utf-8")
    nats_ended = re.search(r"(\S+ \S+) \[INF\] Server Exiting", nats_log)
    postgres_asked = re.search(r"(\S+ \S+) UTC .*received fast shutdown request", postgres_log)
    assert nats_ended is not None
    assert postgres_asked is not None
    exited = datetime.strptime(nats_ended[1], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
    asked = datetime.strptime(postgres_asked[1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    assert exited <= asked.replace(microsecond=asked.microsecond // 1000 * 1000 + 999)
    assert "database system is shut down" in postgres_log
    assert "Local training runs go on" in up.output
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert not (up.data_dir / "run" / "state.json").exists()


async def test_kill_of_everything_loses_nothing_and_secrets_stay(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    secrets = up.secrets
    await query(up.superuser_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    up.kill_everything()
    again = make_up().start()
    assert await query(again.superuser_dsn, "SELECT n FROM kept") == 7
    assert again.secrets == secrets


async def test_kill_of_the_supervisor_alone_ends_its_children_and_frees_the_port(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    await query(up.superuser_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert up.process is not None
    up.process.kill()
    up.process.wait()
    again = make_up(port=up.port).start()
    assert await query(again.superuser_dsn, "SELECT n FROM kept") == 7
    up.process.communicate()


def test_child_that_ignores_its_parents_death_is_ended_by_the_next_start(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    assert up.process is not None
    gateway = psutil.Process(up.pids["gateway"])
    gateway.suspend()
    up.process.kill()
    up.process.wait()
    make_up(port=up.port).start()
    assert not gateway.is_running()
    up.process.communicate()


def test_taken_port_is_named_and_nothing_starts(make_up: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = make_up(port=taken.getsockname()[1])
        assert up.run() == 1
    assert f"port {up.port} on 127.0.0.1 is taken" in up.output
    assert "--port" in up.output
    assert not (up.data_dir / "postgres").exists()


def test_newer_data_directory_is_refused_untouched(make_up: Callable[..., Up], short_dir: Path) -> None:
    (short_dir / "data").mkdir()
    (short_dir / "data" / "version.json").write_text('{"data_version": 999}', encoding="utf-8")
    before = snapshot(short_dir)
    up = make_up()
    assert up.run() == 1
    assert "newer Tunewright (data version 999" in up.output
    assert snapshot(short_dir) == before


def test_second_instance_is_told_who_runs(make_up: Callable[..., Up]) -> None:
    first = make_up().start()
    second = make_up()
    assert second.run() == 1
    assert first.process is not None
    assert f"already runs on {first.data_dir} (process {first.process.pid})" in second.output
    assert first.process.poll() is None


@pytest.mark.parametrize("name", ["postgres", "nats", "scheduler", "gateway"])
async def test_killed_child_comes_back_and_the_others_stay(make_up: Callable[..., Up], name: str) -> None:
    up = make_up().start()
    before = up.pids
    psutil.Process(before[name]).kill()
    wait_until(lambda: up.pids[name] != before[name], f"{name} to have a new process")
    dsn = up.superuser_dsn
    end = datetime.now(UTC).timestamp() + DEADLINE_S
    while not await answers(dsn):
        assert datetime.now(UTC).timestamp() < end
    up.read_until(f"{name} was ended by SIGKILL; starting it again")
    assert {other: pid for other, pid in up.pids.items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    assert up.stop() == 0


def test_program_that_keeps_dying_ends_everything_and_is_named(make_up: Callable[..., Up]) -> None:
    up = make_up(arguments=["--break", "billing"])
    assert up.run() == 1
    assert "error: billing ended with exit code 3, too often to go on" in up.output
    assert "no such table: spoons" in up.output.partition("error:")[2]
    assert up.output.count("starting it again") == 4
    assert {end["name"] for end in up.journal()} <= SERVICES - {"billing"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", up.port))


async def test_servers_that_are_already_there_are_used(
    make_up: Callable[..., Up],
    own_nats_server: EmbeddedNats,
    short_dir: Path,
) -> None:
    postgres = EmbeddedPostgres(short_dir / "pg", unsafe_fast=True).start()  # the session's has roles of its own
    try:
        dsn = postgres.dsn("postgres", postgres.superuser_password, "ours")
        url = own_nats_server.url.replace("://", f"://{NATS_USER.name}:{NATS_USER.password}@")
        await query(postgres.superuser_dsn, "CREATE DATABASE ours")
        up = make_up(arguments=["--database-url", dsn, "--nats-url", url]).start()
        assert set(up.pids) == SERVICES
        told = gateway_environment(up)
        assert (told["NATS_URL"], told["NATS_USER"], told["NATS_PASSWORD"]) == (own_nats_server.url, "tests", "tests")
        who = await query(told["DATABASE_URL"], "SELECT current_user || ' in ' || current_database()")
        assert who == "gateway in ours"
        assert up.stop() == 0
        assert postgres.is_ready()
        assert own_nats_server.is_ready()
    finally:
        postgres.stop()


def test_database_that_does_not_answer_is_named(make_up: Callable[..., Up]) -> None:
    up = make_up(arguments=["--database-url", "postgresql://postgres@127.0.0.1:1/x"])
    assert up.run() == 1
    assert "error: cannot prepare the database" in up.output
    assert "Traceback" not in up.output


def test_path_that_cannot_be_a_directory_is_named(make_up: Callable[..., Up], short_dir: Path) -> None:
    (short_dir / "file").touch()
    up = make_up(data_dir=short_dir / "file" / "data")
    assert up.run() == 1
    assert f"error: cannot use {up.data_dir} as data directory" in up.output
    assert "Traceback" not in up.output


def test_any_path_will_do_and_its_short_socket_path_is_removed(make_up: Callable[..., Up], short_dir: Path) -> None:
    up = make_up(data_dir=short_dir / "dätä, \"the\" 'dir'").start()
    socket_dir = Path(parse_qs(urlsplit(str(up.state["log_dsn"])).query)["host"][0])
    assert socket_dir.is_dir()
    assert up.stop() == 0
    assert not socket_dir.exists()


def python_for_everyone() -> str | None:
    """A Python 3.11 that a stranger can run; the one in the environment often lives in a closed home."""
    for python in ("/usr/bin/python3.11", "/usr/local/bin/python3.11"):
        if Path(python).exists():
            return python
    return None


@as_root
async def test_unprivileged_user_runs_everything_as_himself(make_up: Callable[..., Up], short_dir: Path) -> None:
    python = python_for_everyone()
    if python is None or not (REPOSITORY.stat().st_mode & stat.S_IXOTH):
        pytest.skip("nobody cannot reach a Python 3.11 and this repository")
    home = short_dir / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, "nobody")
    packages = str(Path(asyncpg.__file__).parents[1])
    up = make_up(
        data_dir=home / "data",
        python=python,
        user="nobody",
        environ={
            "PYTHONPATH": packages,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(home),
            "TUNEWRIGHT_NATS_SERVER": str(find_nats_server({})),
        },
    ).start()
    assert {psutil.Process(pid).username() for pid in up.pids.values()} == {"nobody"}
    assert stat.S_IMODE(up.data_dir.stat().st_mode) == 0o700
    assert await query(up.state["log_dsn"], "SELECT 1") == 1
    assert up.stop() == 0


@as_root
async def test_root_with_a_closed_data_directory_keeps_the_cluster_where_its_user_can_go(
    make_up: Callable[..., Up],
    short_dir: Path,
) -> None:
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    up = make_up(data_dir=closed / "data").start()
    home = Path((up.data_dir / "postgres.path").read_text(encoding="utf-8"))
    try:
        assert re.search(f"Database +{home}", up.output)
        await query(up.superuser_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        assert up.stop() == 0
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        again = make_up(data_dir=closed / "data").start()
        assert await query(again.superuser_dsn, "SELECT n FROM kept") == 7
        assert again.stop() == 0
    finally:
        shutil.rmtree(home)


@pytest.fixture
def small_disk(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of as many megabytes as the test asks for."""
    path = short_dir / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m,mode=711", "tmpfs", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr}")
    yield path
    subprocess.run(["umount", path], check=True)


@as_root
@pytest.mark.parametrize("small_disk", [150], indirect=True)
def test_start_without_space_is_refused(small_disk: Path, make_up: Callable[..., Up]) -> None:
    up = make_up(data_dir=small_disk / "data")
    assert up.run() == 1
    assert re.search(r"has 1\d\d MB free; at least 200 MB", up.output)
    assert not (up.data_dir / "postgres").exists()


async def insert_until_refused(dsn: str) -> int:
    """Inserts committed rows one by one; how many were accepted before the first refusal."""
    connection = await asyncpg.connect(dsn)
    accepted = 0
    try:
        while True:
            await connection.execute("INSERT INTO kept SELECT $1, repeat(md5(random()::text), 8000)", accepted)
            accepted += 1
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return accepted
    finally:
        connection.terminate()


def fill(path: Path, *, leave_bytes: int) -> None:
    """Takes the space of the disk that `path` is on, up to the last byte if nothing is to be left."""
    block = b"x" * 1024**2
    with path.open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(path).free) > leave_bytes:
            file.write(block[: free - leave_bytes])


@as_root
@pytest.mark.parametrize("small_disk", [420], indirect=True)
async def test_full_disk_refuses_and_everything_accepted_is_there_when_space_is_back(
    small_disk: Path,
    make_up: Callable[..., Up],
) -> None:
    up = make_up(data_dir=small_disk / "data").start()
    dsn = up.superuser_dsn
    await query(dsn, "CREATE TABLE kept (n int, filler text STORAGE external)")
    fill(small_disk / "ballast", leave_bytes=40 * 1024**2)
    accepted = await insert_until_refused(dsn)
    assert accepted > 0
    up.read_until(f"The disk of {up.data_dir} is full")
    fill(small_disk / "more", leave_bytes=0)
    with suppress(psutil.NoSuchProcess):  # it may have given up by itself
        psutil.Process(up.pids["postgres"]).kill()
    up.read_until("the disk is full, so it is started again until there is space")
    assert psutil.pid_exists(up.pids["gateway"])
    for ballast in ("ballast", "more"):
        (small_disk / ballast).unlink()
    up.read_until(f"The disk of {up.data_dir} has space again")
    end = datetime.now(UTC).timestamp() + DEADLINE_S
    while not await answers(dsn):
        assert datetime.now(UTC).timestamp() < end, up.output
    assert await query(dsn, "SELECT count(*) FROM kept WHERE n < $1", accepted) == accepted
    await query(dsn, "INSERT INTO kept VALUES (-1, '')")
    assert up.stop() == 0
    log = (up.data_dir / "logs" / "postgres.log").read_text(encoding="utf-8")
    assert "No space left on device" in log


def test_address_of_another_machine_is_named(make_up: Callable[..., Up]) -> None:
    up = make_up(arguments=["--host", "192.0.2.1"])
    assert up.run() == 1
    assert f"error: cannot listen on 192.0.2.1 port {up.port}" in up.output


def test_second_signal_forces_the_end(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    assert up.process is not None
    psutil.Process(up.pids["gateway"]).suspend()
    up.process.send_signal(signal.SIGINT)
    up.read_until("Stopping.")
    up.process.send_signal(signal.SIGINT)
    assert up.finish(up.process) == 0
    assert "gateway does not stop; using SIGKILL" in up.output


def test_terminal_that_goes_away_does_not_stop_the_supervision(make_up: Callable[..., Up]) -> None:
    up = make_up().start()
    assert up.process is not None
    assert up.process.stdout is not None
    up.process.stdout.close()
    before = up.pids["billing"]
    psutil.Process(before).kill()
    wait_until(lambda: up.pids["billing"] != before, "billing to come back")
    up.process.send_signal(signal.SIGHUP)
    assert up.process.wait(120) == 0
    log = (up.data_dir / "logs" / "supervisor.log").read_text(encoding="utf-8")
    assert "billing was ended by SIGKILL; starting it again" in log
    assert "Stopping." in log


async def test_product_itself_is_ready_again_after_everything_was_killed(make_up: Callable[..., Up]) -> None:
    up = make_up(module="deploy.embedded.up").start()
    store = await query(up.state["log_dsn"], "SELECT store_id FROM log.store_meta")
    up.kill_everything()
    again = make_up(module="deploy.embedded.up").start()
    assert await query(again.state["log_dsn"], "SELECT store_id FROM log.store_meta") == store
    assert again.stop() == 0
    assert "using SIGKILL" not in again.output
    stopped = (again.data_dir / "logs" / "gateway.log").read_text(encoding="utf-8")
    assert "service.process.stopped" in stopped
