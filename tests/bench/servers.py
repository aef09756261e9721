"""Durable servers for benchmarks: what `tunewright up` runs, fsync on, on disk. Tests use faster, unsafe ones."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import asyncpg

from deploy.embedded.nats import EmbeddedNats, NatsUser
from shared.eventstore.migrate import migrate
from tests.bench.bench import Bench
from tests.support.bus import bus_users
from tests.support.log import PASSWORDS, LogDatabase

BENCH_USER = "bench"


@asynccontextmanager
async def fresh_log(bench: Bench) -> AsyncGenerator[LogDatabase]:
    """An empty migrated database on the run's durable server, dropped at the end."""
    name = f"bench_{uuid4().hex[:12]}"
    await migrate(bench.postgres.superuser_dsn, name, PASSWORDS)
    try:
        yield LogDatabase(name, bench.postgres)
    finally:
        admin = await asyncpg.connect(bench.postgres.superuser_dsn)
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()


@contextmanager
def fresh_bus(bench: Bench) -> Generator[EmbeddedNats]:
    """An empty NATS with every user and permission of the product, and one for the bench that may do anything."""
    users = [*bus_users(), NatsUser(BENCH_USER, BENCH_USER)]
    server = EmbeddedNats(bench.home / f"nats-{uuid4().hex[:8]}", users).start()
    try:
        yield server
    finally:
        server.stop()
