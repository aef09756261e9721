"""The bench of the consumer tests."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats
from tests.integration.messaging.harness import SERVICE, TABLES, Bench
from tests.support.log import LogDatabase, StoreFor


@pytest.fixture
async def bench(log_database: LogDatabase, bus_server: EmbeddedNats, store_for: StoreFor) -> AsyncIterator[Bench]:
    async with asyncpg.create_pool(log_database.dsn(SERVICE), min_size=1, max_size=5) as pool:
        await pool.execute(TABLES)
        yield Bench(log_database, bus_server, pool, store_for)
