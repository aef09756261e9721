"""Migrations: once, in order, never changed afterwards; by a superuser or by an owner who may make roles."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from shared.contracts.catalogue import WRITERS
from shared.contracts.subjects import SERVICES
from shared.eventstore.migrate import LOGIN_ROLES, MigrationError, find_migrations, main, migrate
from shared.eventstore.postgres import PostgresEventStore
from tests.support.log import PASSWORDS, LogDatabase, a_job_stream, an_append

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
async def name(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database that does not exist yet; dropped at the end."""
    made = f"log_{uuid4().hex}"
    yield made
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    await admin.execute(f"DROP DATABASE IF EXISTS {made} WITH (FORCE)")
    await admin.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may change."""
    for folder in ("shared/eventstore/sql", "shared/messaging/sql"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    own = tmp_path / "services/billing/sql"
    own.mkdir(parents=True)
    (own / "0001_first.sql").write_text("create table first (n int);\ninsert into first values (1);", encoding="utf-8")
    (own / "queries.sql").write_text("not a migration", encoding="utf-8")
    return tmp_path


async def snapshot(dsn: str) -> list[tuple[object, ...]]:
    """Everything a second migration could have changed."""
    connection = await asyncpg.connect(dsn)
    tables = await connection.fetch(
        "select n.nspname, c.relname, c.relowner::regrole::text, c.relacl::text, c.oid from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_|^information' order by c.oid"
    )
    facts = await connection.fetch("select scope, name, sha256, applied_at from log.migrations order by 1, 2")
    store = await connection.fetch("select store_id from log.store_meta")
    await connection.close()
    return [tuple(row) for row in (*tables, *facts, *store)]


async def test_migrating_twice_is_a_no_op(postgres_server: EmbeddedPostgres, name: str) -> None:
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)
    log = LogDatabase(name, postgres_server)
    before = await snapshot(log.superuser_dsn)
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)
    assert await snapshot(log.superuser_dsn) == before


async def test_two_databases_have_two_identities(postgres_server: EmbeddedPostgres, name: str) -> None:
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)
    async with PostgresEventStore.open(postgres_server.dsn("gateway", PASSWORDS["gateway"], name)) as store:
        first = await store.store_id()
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)
    async with PostgresEventStore.open(postgres_server.dsn("gateway", PASSWORDS["gateway"], name)) as store:
        assert await store.store_id() != first


async def test_changed_file_that_was_applied_is_refused(
    postgres_server: EmbeddedPostgres, name: str, tree: Path
) -> None:
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)
    file = tree / "services/billing/sql/0001_first.sql"
    file.write_text(file.read_text(encoding="utf-8") + "-- better", encoding="utf-8")
    with pytest.raises(MigrationError, match=r"billing/0001_first\.sql was applied and has changed"):
        await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)


async def test_new_file_is_applied_once_as_the_service_in_its_schema(
    postgres_server: EmbeddedPostgres, name: str, tree: Path
) -> None:
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)
    second = tree / "services/billing/sql/0002_second.sql"
    second.write_text("insert into first select count(*) + 1 from events", encoding="utf-8")
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)
    connection = await asyncpg.connect(postgres_server.dsn(SUPERUSER, postgres_server.superuser_password, name))
    owner = await connection.fetchval(
        "select relowner::regrole::text from pg_class where oid = 'billing.first'::regclass"
    )
    rows = await connection.fetch("select n from billing.first")
    await connection.close()
    assert owner == "billing"
    assert [row["n"] for row in rows] == [1, 1]


async def test_failing_file_leaves_nothing_and_is_applied_when_mended(
    postgres_server: EmbeddedPostgres, name: str, tree: Path
) -> None:
    second = tree / "services/billing/sql/0002_second.sql"
    second.write_text("create table half (n int); select 1 / 0", encoding="utf-8")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)
    second.write_text("create table half (n int)", encoding="utf-8")
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS, root=tree)


async def test_missing_password_is_named(postgres_server: EmbeddedPostgres, name: str) -> None:
    with pytest.raises(MigrationError, match="no password for billing"):
        await migrate(postgres_server.superuser_dsn, name, PASSWORDS | {"billing": ""})


async def test_owner_who_is_no_superuser_may_migrate(postgres_server: EmbeddedPostgres, name: str) -> None:
    owner = f"owner_{uuid4().hex}"
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)  # the roles exist, and are not this owner's to give
    await admin.execute(f"DROP DATABASE {name}")
    await admin.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD 'pw'")
    for role in ("log_owner", *LOGIN_ROLES):
        await admin.execute(f"GRANT {role} TO {owner} WITH ADMIN OPTION")
    await admin.execute(f"CREATE DATABASE {name} OWNER {owner}")
    try:
        await migrate(postgres_server.dsn(owner, "pw", name), name, PASSWORDS)
        async with PostgresEventStore.open(postgres_server.dsn("scheduler", PASSWORDS["scheduler"], name)) as store:
            assert (await store.append(an_append(a_job_stream()))).first_position == 1
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.execute(f"DROP ROLE {owner}")
        await admin.close()


def test_every_service_has_its_common_tables_and_every_writer_is_a_service() -> None:
    found = [(migration.scope, migration.name) for migration in find_migrations()]
    assert found[0] == ("log", "0001_log.sql")
    assert {scope for scope, name in found if name == "service_tables.sql"} == set(SERVICES)
    assert len(found) == len(set(found))
    assert set(WRITERS.values()) <= set(SERVICES)


async def test_command_line_migrates_as_the_environment_says(postgres_server: EmbeddedPostgres, name: str) -> None:
    environment = {"DATABASE_SUPERUSER_URL": postgres_server.superuser_dsn, "DATABASE_NAME": name}
    environment |= {f"{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()}
    assert await asyncio.to_thread(main, environment) == 0
    assert await asyncio.to_thread(main, environment | {"BILLING_PASSWORD": ""}) == 1
