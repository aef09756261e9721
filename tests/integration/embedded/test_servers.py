"""The two embedded servers on their own: made once, restarted after any death, closed to strangers."""

# nats-py leaves its options unannotated.
# pyright: reportUnknownMemberType=false

import asyncio
import fcntl
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from deploy.embedded.nats import EmbeddedNats, NatsLayout, NatsUser, find_nats_server, render_nats_config
from deploy.embedded.postgres import EmbeddedPostgres
from deploy.embedded.postgres_binaries import find_binaries, reachable_binaries
from deploy.embedded.process import EmbeddedError, SystemUser
from tests.conftest import Database

REPOSITORY = Path(__file__).parents[3]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has users to drop to")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tw-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def postgres(short_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(short_dir / "pg", unsafe_fast=True)
    yield server
    server.stop()


async def query(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_postgres_answers_on_socket_and_tcp_with_checksums_and_durability(postgres: EmbeddedPostgres) -> None:
    durable = EmbeddedPostgres(postgres.home)
    durable.start()
    try:
        assert await query(durable.superuser_dsn, "SHOW data_checksums") == "on"
        over_tcp = durable.dsn("postgres", durable.superuser_password, "postgres", tcp=True)
        assert await query(over_tcp, "SHOW fsync") == "on"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(durable.dsn("postgres", "wrong", "postgres", tcp=True), "SELECT 1")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(durable.dsn("postgres", "wrong", "postgres"), "SELECT 1")
    finally:
        durable.stop()


async def test_postgres_keeps_data_over_a_stop_and_over_a_kill(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    await query(postgres.superuser_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    postgres.stop()
    first = postgres.start().process
    assert first is not None
    assert await query(postgres.superuser_dsn, "SELECT n FROM kept") == 7
    first.kill()
    first.wait()
    postgres.start()
    assert await query(postgres.superuser_dsn, "SELECT n FROM kept") == 7


def test_pid_file_that_names_a_stranger_does_not_stop_the_start(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (postgres.cluster / "postmaster.pid").write_text(f"{stranger.pid}\n{postgres.cluster}\n", encoding="utf-8")
        assert postgres.start().is_ready()
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


async def test_half_made_cluster_is_made_again(postgres: EmbeddedPostgres) -> None:
    half = postgres.home / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18", encoding="utf-8")
    postgres.start()
    assert await query(postgres.superuser_dsn, "SELECT 1") == 1


async def test_orphan_of_the_same_cluster_is_stopped_first(postgres: EmbeddedPostgres) -> None:
    first = postgres.start().process
    assert first is not None
    await query(postgres.superuser_dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    second = EmbeddedPostgres(postgres.home, unsafe_fast=True)
    try:
        second.start()
        assert first.wait(10) == 0
        assert await query(second.superuser_dsn, "SELECT n FROM kept") == 7
    finally:
        second.stop()


@pytest.mark.parametrize("kind", ["postgres", "nats"])
def test_server_dies_with_its_killed_parent(short_dir: Path, kind: str) -> None:
    program = {
        "postgres": "from deploy.embedded.postgres import EmbeddedPostgres as S\n"
        "server = S(pathlib.Path(sys.argv[1]), unsafe_fast=True)",
        "nats": "from deploy.embedded.nats import EmbeddedNats as S\nserver = S(pathlib.Path(sys.argv[1]), [])",
    }[kind]
    code = f"import pathlib, sys\n{program}\nprint(server.start().process.pid, flush=True)\ninput()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, short_dir / kind],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    child = psutil.Process(pid)
    parent.kill()
    parent.communicate()
    child.wait(30)
    assert not child.is_running()


@as_root
async def test_root_drops_to_another_user_who_owns_the_cluster(postgres: EmbeddedPostgres) -> None:
    child = postgres.start().process
    assert child is not None
    assert psutil.Process(child.pid).uids().real != 0
    assert stat.S_IMODE(postgres.cluster.stat().st_mode) == 0o700
    assert postgres.cluster.owner() in {"postgres", "nobody"}


@as_root
def test_out_of_reach_binaries_are_copied_once_with_their_libraries(short_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    user = SystemUser("nobody", nobody.pw_uid, nobody.pw_gid)
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    wheel = find_binaries({}).parent.parent
    for name in (wheel.name, f"{wheel.name}.libs"):
        if wheel.with_name(name).exists():
            shutil.copytree(wheel.with_name(name), closed / name)
    found = closed / wheel.name / "pginstall" / "bin"
    copied = reachable_binaries(found, user, short_dir / "home")
    assert copied != found
    made = copied.stat().st_ino
    assert reachable_binaries(found, user, short_dir / "home").stat().st_ino == made
    answer = subprocess.run(
        [copied / "postgres", "--version"], user="nobody", capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("postgres (PostgreSQL)")


@as_root
def test_data_folder_out_of_reach_is_refused_with_advice(short_dir: Path) -> None:
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match="choose a data directory"):
        EmbeddedPostgres(closed / "pg").start()
    assert not (closed / "pg" / "data").exists()


def test_chosen_binaries_win_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="holds no program"):
        find_binaries({"TUNEWRIGHT_PG_BIN": str(tmp_path)})


def test_long_data_path_gets_a_short_socket_path(short_dir: Path) -> None:
    server = EmbeddedPostgres(short_dir / ("x" * 100), unsafe_fast=True).start()
    try:
        short = server.socket_dir
        assert not short.is_relative_to(server.home)
        assert (short / f".s.PGSQL.{server.port}").is_socket()
    finally:
        server.stop()
    assert not short.exists()


async def test_fixture_databases_are_empty_and_apart(database: Database, module_database: Database) -> None:
    await query(database.superuser_dsn, "CREATE TABLE mine (n int)")
    assert await query(module_database.superuser_dsn, "SELECT to_regclass('mine')") is None


async def test_nats_keeps_acknowledged_messages_over_a_kill(own_nats_server: EmbeddedNats) -> None:
    user = own_nats_server.users[0]
    connection = await nats.connect(own_nats_server.url, user=user.name, password=user.password)
    stream = connection.jetstream()
    await stream.add_stream(name="KEPT", subjects=["kept.>"])
    await stream.publish("kept.one", b"1")
    await connection.close()
    child = own_nats_server.process
    assert child is not None
    child.kill()
    child.wait()
    own_nats_server.start()
    connection = await nats.connect(own_nats_server.url, user=user.name, password=user.password)
    assert (await connection.jetstream().stream_info("KEPT")).state.messages == 1
    await connection.close()


async def raw_login(server: EmbeddedNats, user: str, password: str) -> bytes:
    """What the server says to a login; nats-py leaks its socket when it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    login = json.dumps({"user": user, "pass": password, "verbose": True})
    writer.write(f"CONNECT {login}\r\n".encode())
    answer = await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_nats_users_are_limited_to_their_subjects(tmp_path: Path) -> None:
    limited = NatsUser("limited", "pw", publish_allow=["mine.>"], subscribe_allow=["_INBOX_limited.>"])
    server = EmbeddedNats(tmp_path / "nats", [limited]).start()
    refused: asyncio.Queue[Exception] = asyncio.Queue()
    try:
        connection = await nats.connect(server.url, user="limited", password="pw", error_cb=refused.put)
        await connection.publish("theirs.x", b"")
        assert "Permissions Violation" in str(await asyncio.wait_for(refused.get(), 60)).title()
        await connection.close()
        assert await raw_login(server, "limited", "no") == b"-ERR 'Authorization Violation'\r\n"
    finally:
        server.stop()


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_nats_config_is_private_and_its_store_is_locked(own_nats_server: EmbeddedNats) -> None:
    config = own_nats_server.home / "nats.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert is_locked(own_nats_server.home / "store.lock")
    own_nats_server.stop()
    assert not is_locked(own_nats_server.home / "store.lock")


def test_nats_config_takes_bcrypt_and_is_accepted_by_the_server(tmp_path: Path) -> None:
    hashed = "$2a$11$W2zko751KUvVy59mUTWmpOdWjpEm5qhcCZRd05GjI/sSOT.xtiHyG"
    user = NatsUser("a", hashed, ["cmd.>", "$JS.API.>"], ["_INBOX_a.>"], allow_responses=True)
    text = render_nats_config(
        [user, NatsUser("b", 'quo"te')], NatsLayout(store_dir=str(tmp_path), listen="0.0.0.0:4222")
    )
    assert f'password: "{hashed}"' in text
    config = tmp_path / "nats.conf"
    config.write_text(text, encoding="utf-8")
    checked = subprocess.run([find_nats_server({}), "-t", "-c", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
