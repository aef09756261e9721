"""Who may do what to the log, tried under the real roles."""

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from shared.contracts.catalogue import WRITERS
from shared.contracts.subjects import SERVICES
from shared.eventstore.migrate import LOGIN_ROLES
from tests.support.log import LogDatabase, StoreFor, a_job_stream, an_account_event, an_append

As = Callable[[str], Awaitable[asyncpg.Connection]]
CHANGES = [
    "update log.events set data = ''",
    "delete from log.events",
    "truncate log.events",
    "insert into log.events (global_position) values (77)",
    "update log.seals set hash = ''",
    "delete from log.seals",
    "truncate log.seals",
    "update log.category_writer set role = current_user",
    "update log.store_meta set store_id = gen_random_uuid()",
    "alter table log.events disable trigger append_only",
    "create table log.mine (n int)",
    "create table public.mine (n int)",
    "create temporary table mine (n int)",
    "drop table log.events",
    "set role log_owner",
]


@pytest.fixture
async def connect_as(log_database: LogDatabase, store_for: StoreFor) -> AsyncIterator[As]:
    """`await connect_as("billing")`; the log holds one event and one seal."""
    await (await store_for("scheduler")).append(an_append(a_job_stream()))
    opened: list[asyncpg.Connection] = []

    async def connect(role: str) -> asyncpg.Connection:
        dsn = log_database.superuser_dsn if role == "superuser" else log_database.dsn(role)
        opened.append(await asyncpg.connect(dsn))
        return opened[-1]

    relay = await connect("relay")
    await relay.execute("insert into log.seals values (1, 1, 1, sha256(''))")
    yield connect
    for connection in opened:
        await connection.close()


@pytest.mark.parametrize("role", LOGIN_ROLES)
async def test_no_role_changes_the_log_except_through_its_function(connect_as: As, role: str) -> None:
    connection = await connect_as(role)
    for change in CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(change)
    assert await connection.fetchval("select count(*) from log.events") == 1


@pytest.mark.parametrize(
    "change", [change for change in CHANGES if change.startswith(("update log.e", "delete", "trun"))]
)
async def test_not_even_the_superuser_changes_events_or_seals(connect_as: As, change: str) -> None:
    superuser = await connect_as("superuser")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await superuser.execute(change)
    await superuser.execute("set session_replication_role = replica")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await superuser.execute(change)


@pytest.mark.parametrize("role", ["superuser", *LOGIN_ROLES])
async def test_only_its_writer_appends_to_a_category(connect_as: As, role: str) -> None:
    connection = await connect_as(role)
    for category, writer in WRITERS.items():
        call = (
            "select first_position from log.append_batch(array[$1], array[0], array[gen_random_uuid()], array[1],"
            " array[gen_random_uuid()], array[$2], array['{}'::bytea], array['{}'::bytea])"
        )
        arguments = (f"{category}-{role}", f"{category}.tried.v1")
        if role == writer:
            assert await connection.fetchval(call, *arguments) > 1
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetchval(call, *arguments)


async def test_store_under_a_foreign_role_is_refused_and_writes_nothing(store_for: StoreFor) -> None:
    store = await store_for("gateway")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.append(an_append("account-1", an_account_event()))
    assert await store.head() == 0


@pytest.mark.parametrize("role", ["relay", "inspector", *SERVICES])
async def test_services_do_not_see_each_others_tables(connect_as: As, role: str) -> None:
    connection = await connect_as(role)
    for service in SERVICES:
        query = f"table {service}.inbox"
        if service == role:
            assert await connection.fetch(query) == []
            assert await connection.fetch("table inbox") == [], "it is first in the search path"
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(query)


async def test_inspector_sees_positions_and_parked_messages_of_every_service(connect_as: As) -> None:
    connection = await connect_as("inspector")
    for service in SERVICES:
        for table in ("checkpoint", "parked"):
            assert await connection.fetch(f"table {service}.{table}") == []


async def test_nobody_else_connects(log_database: LogDatabase, connect_as: As) -> None:
    superuser = await connect_as("superuser")
    assert not await superuser.fetchval("select has_database_privilege('pg_monitor', $1, 'connect')", log_database.name)
