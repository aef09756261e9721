"""Brings a Postgres to the shape the code expects: database, roles, schemas, tables, grants. Repeating it is harmless.

`python -m shared.eventstore.migrate` reads DATABASE_SUPERUSER_URL, DATABASE_NAME and <ROLE>_PASSWORD for each role.
The account it connects as may be a superuser, or the owner of the database who may create roles.
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import asyncpg
import msgspec
import structlog

from shared.contracts.catalogue import WRITERS
from shared.contracts.subjects import SERVICES
from shared.eventstore.queries import QUERIES
from shared.ids import new_id
from shared.observability import logging
from shared.settings import Secret, SettingsError, load

OWNER = "log_owner"
"""Owns schema `log` and cannot log in."""
RELAY = "relay"
INSPECTOR = "inspector"
LOGIN_ROLES = (RELAY, *SERVICES, INSPECTOR)
SCHEMA_VERSION = 1

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 60.0
log = structlog.stdlib.get_logger()


class MigrationError(Exception):
    """A database that this code must not touch, and why."""


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One file, applied once, as `role`, with `search_path` as its schemas."""

    scope: str
    name: str
    sql: str
    role: str
    search_path: str

    @property
    def sha256(self) -> str:
        """What is remembered of an applied file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def find_migrations(root: Path = _ROOT) -> Iterator[Migration]:
    """The log's files, then for each service its common tables and its own files, in the order of their numbers."""
    yield from _folder(root / "shared/eventstore/sql", "log", OWNER, "log")
    common = (root / "shared/messaging/sql/service_tables.sql").read_text(encoding="utf-8")
    for service in sorted(SERVICES):
        path = f"{service}, log"
        yield Migration(scope=service, name="service_tables.sql", sql=common, role=service, search_path=path)
        yield from _folder(root / "services" / service / "sql", service, service, path)


def _folder(folder: Path, scope: str, role: str, search_path: str) -> Iterator[Migration]:
    for file in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        sql = file.read_text(encoding="utf-8")
        yield Migration(scope=scope, name=file.name, sql=sql, role=role, search_path=search_path)


async def migrate(superuser_dsn: str, database: str, role_passwords: Mapping[str, str], *, root: Path = _ROOT) -> None:
    """Makes or updates `database` and its roles; each file is applied once, in a transaction of its own.

    Raises:
        MigrationError: a password is missing, or a file that was applied has changed since.
    """
    missing = [role for role in LOGIN_ROLES if not role_passwords.get(role)]
    if missing:
        raise MigrationError(f"no password for {', '.join(missing)}")
    async with _connected(superuser_dsn) as server:
        # Roles belong to the whole server: only one migration at a time may touch them.
        await server.execute(QUERIES.lock_migrations)
        await _make_roles(server, role_passwords)
        if not await server.fetchval(QUERIES.database_exists, database):
            await server.execute(await server.fetchval(QUERIES.create_database, database))
    async with _connected(superuser_dsn, database) as connection:
        await connection.execute(QUERIES.lock_migrations)
        await _make_schemas(connection, database)
        for migration in find_migrations(root):
            await _apply(connection, migration)
        async with connection.transaction():
            await connection.execute(QUERIES.act_as, OWNER, "log")
            await _set_facts(connection)
            await _grant(connection)
            for service in SERVICES:
                await connection.execute(QUERIES.act_as, service, service)
                await connection.execute(await connection.fetchval(QUERIES.grant_inspection, service, INSPECTOR))


@asynccontextmanager
async def _connected(dsn: str, database: str | None = None) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, database=database, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
    try:
        yield connection
    finally:
        await connection.close(timeout=_TIMEOUT_S)


async def _make_roles(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    # Names and passwords are quoted by the server: the statements are its answers to format().
    for role in (OWNER, *LOGIN_ROLES):
        if not await connection.fetchval(QUERIES.role_exists, role):
            await connection.execute(await connection.fetchval(QUERIES.create_role, role))
        if not await connection.fetchval(QUERIES.is_superuser):
            await connection.execute(await connection.fetchval(QUERIES.grant_membership, role))
    for role in LOGIN_ROLES:
        await connection.execute(await connection.fetchval(QUERIES.set_password, role, passwords[role]))


async def _make_schemas(connection: asyncpg.Connection, database: str) -> None:
    async with connection.transaction():
        await connection.execute(await connection.fetchval(QUERIES.close_database, database))
        for schema, owner in (("log", OWNER), *((service, service) for service in SERVICES)):
            await connection.execute(await connection.fetchval(QUERIES.create_schema, schema, owner))
        for role in LOGIN_ROLES:
            await connection.execute(await connection.fetchval(QUERIES.open_database, role, database))
        for service in SERVICES:
            await connection.execute(await connection.fetchval(QUERIES.set_search_path, service, database))
        await connection.execute(QUERIES.act_as, OWNER, "log")
        await connection.execute(QUERIES.create_bookkeeping)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    applied: str | None = await connection.fetchval(QUERIES.applied_sha256, migration.scope, migration.name)
    if applied == migration.sha256:
        return
    if applied is not None:
        raise MigrationError(f"{migration.scope}/{migration.name} was applied and has changed since: write a new file")
    async with connection.transaction():
        await connection.execute(QUERIES.act_as, migration.role, migration.search_path)
        await connection.execute(migration.sql)
        await connection.execute(QUERIES.act_as, OWNER, "log")
        await connection.execute(QUERIES.remember_applied, migration.scope, migration.name, migration.sha256)
    log.info("migrate.file.applied", scope=migration.scope, file=migration.name)


async def _set_facts(connection: asyncpg.Connection) -> None:
    await connection.execute(QUERIES.set_store, new_id(), SCHEMA_VERSION)
    await connection.execute(QUERIES.set_writers, list(WRITERS), list(WRITERS.values()))


async def _grant(connection: asyncpg.Connection) -> None:
    for role in LOGIN_ROLES:
        await connection.execute(await connection.fetchval(QUERIES.grant_reading, role))
    for service in SERVICES:
        appends = QUERIES.grant_appending if service in WRITERS.values() else QUERIES.revoke_appending
        await connection.execute(await connection.fetchval(appends, service))
    await connection.execute(await connection.fetchval(QUERIES.grant_relaying, RELAY))
    await connection.execute(await connection.fetchval(QUERIES.grant_verifying, INSPECTOR))


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The environment of the command line."""

    database_superuser_url: Secret
    database_name: str
    relay_password: Secret
    storage_password: Secret
    billing_password: Secret
    provider_bridge_password: Secret
    scheduler_password: Secret
    gateway_password: Secret
    inspector_password: Secret


def main(environ: Mapping[str, str]) -> int:
    """Migrates as the environment says; the exit code of the process."""
    logging.configure("migrate")
    try:
        settings = load(Settings, environ)
        passwords = {role: cast("Secret", getattr(settings, f"{role}_password")).reveal() for role in LOGIN_ROLES}
        asyncio.run(migrate(settings.database_superuser_url.reveal(), settings.database_name, passwords))
    except (MigrationError, SettingsError) as error:
        log.error("migrate.database.refused", reason=str(error))  # noqa: TRY400 - the reason says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
