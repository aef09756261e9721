"""The real servers every integration test shares: one Postgres and one NATS per session, a fresh database per test."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats, NatsUser
from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from tests.support.depth import load_profile

pytest_plugins = ["tests.support.log", "tests.support.bus"]

NATS_USER = NatsUser("tests", "tests")

# Trainers of several tests share the cores: with a thread for each core they mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
load_profile()  # before the first test module is read: its decorators take what is loaded


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database of one test's own; `superuser_dsn` connects to it, `server` makes DSNs for other roles."""

    name: str
    superuser_dsn: str
    server: EmbeddedPostgres

    def dsn(self, user: str, password: str) -> str:
        """How another role connects to this database."""
        return self.server.dsn(user, password, self.name)


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A short path, for Unix sockets, that the user who runs Postgres for root can enter (pytest's own is closed)."""
    path = Path(tempfile.mkdtemp(prefix="tw-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres_server(server_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(server_dir / "pg", unsafe_fast=True).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def nats_server(server_dir: Path) -> Iterator[EmbeddedNats]:
    """JetStream shared by the session: log in as NATS_USER, and give streams names of your own."""
    server = EmbeddedNats(server_dir / "nats", [NATS_USER]).start()
    yield server
    server.stop()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """An empty JetStream for one test alone, which may stop and restart it."""
    server = EmbeddedNats(tmp_path / "nats", [NATS_USER]).start()
    yield server
    server.stop()


@asynccontextmanager
async def fresh_database(server: EmbeddedPostgres, template: str = "template1") -> AsyncGenerator[Database]:
    """A new copy of `template`, dropped at the end with whoever is still connected."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(server.superuser_dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        yield Database(name, server.dsn(SUPERUSER, server.superuser_password, name), server)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def database(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with fresh_database(postgres_server) as made:
        yield made


@pytest.fixture(scope="module")
async def module_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with fresh_database(postgres_server) as made:
        yield made
