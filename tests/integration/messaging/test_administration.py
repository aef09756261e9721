"""What a service answers to those who look after it while its Postgres is away."""

from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import msgspec
import pytest

from deploy.embedded.nats import EmbeddedNats
from deploy.embedded.process import LOOPBACK, free_port
from shared.administration import Administration
from shared.contracts.admin import ListParked, Ping, RebuildProjections, ReplayParked
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.job import Command
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.messaging.consumer import Consumer, Subscription
from shared.messaging.pull import StandingPull
from shared.problems import Unavailable
from shared.projection import Projection
from tests.integration.messaging.harness import LEDGER, SERVICE, project
from tests.support.bus import connected_bus

COMMANDS: list[Command] = [Ping(), RebuildProjections(), ListParked(), ReplayParked(durable=LEDGER.name, position=1)]


@pytest.fixture
async def without_postgres(bus_server: EmbeddedNats) -> AsyncIterator[Administration]:
    """A service whose pool leads to a port where nobody listens."""
    dsn = f"postgresql://{SERVICE}@{LOOPBACK}:{free_port()}/nothing"
    subscription = Subscription(durable=LEDGER, project=project)
    async with asyncpg.create_pool(dsn, min_size=0) as pool, connected_bus(bus_server, SERVICE) as bus:
        store = PostgresEventStore(pool)
        pull = partial(StandingPull, bus.client)
        consumer = Consumer(subscription, store=store, pull=pull, pool=pool, connect=partial(asyncpg.connect, dsn))
        yield Administration(
            SERVICE,
            "0",
            pool=pool,
            store=store,
            subscriptions=[subscription],
            projections=[Projection(name="accounts", tables=("seen",), durable=LEDGER, project=project)],
            consumers={LEDGER.name: consumer},
        )
        await store.close()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
async def test_an_outage_of_postgres_is_answered_as_one_and_not_as_a_bug(
    without_postgres: Administration, command: Command
) -> None:
    envelope = CommandEnvelope(
        command_id=new_id(), correlation_id=new_id(), actor="test", payload=msgspec.Raw(msgspec.json.encode(command))
    )
    with pytest.raises(Unavailable, match="the log does not answer"):
        await without_postgres.handlers()[type(command)](command, envelope)
