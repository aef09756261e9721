"""Every service's read models by name, and a recorded log folded through them as a rebuild would."""

from collections.abc import Iterable

import asyncpg

from services.billing.projections import ledger
from services.gateway.inbound.subscriptions import PROJECTIONS as GATEWAY_PROJECTIONS
from services.provider_bridge.projections.attempts import ATTEMPTS
from services.scheduler.projections import queue
from services.storage.projections import objects
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import BILLING_LEDGER, SCHEDULER_QUEUE, STORAGE_OBJECTS
from shared.projection import Projection

PROJECTIONS: dict[str, list[Projection]] = {
    "gateway": list(GATEWAY_PROJECTIONS),
    "scheduler": [Projection(name="queue", tables=("jobs",), durable=SCHEDULER_QUEUE, project=queue.project)],
    "billing": [Projection(name="ledger", tables=ledger.TABLES, durable=BILLING_LEDGER, project=ledger.project)],
    "storage": [Projection(name="objects", tables=objects.TABLES, durable=STORAGE_OBJECTS, project=objects.project)],
    "provider_bridge": [ATTEMPTS],
}
TABLES = {service: [table for one in found for table in one.tables] for service, found in PROJECTIONS.items()}


async def table_rows(connection: asyncpg.Connection, service: str, table: str) -> list[str]:
    """A read model's rows as `jsonb` text, sorted: the same for the same rows, on any server."""
    rows = await connection.fetch(
        f"select to_jsonb(t)::text as line from {service}.{table} t"  # noqa: S608 - names from the table above
    )
    return sorted(row["line"] for row in rows)


async def refold(connection: asyncpg.Connection, service: str, log: Iterable[RecordedEvent]) -> dict[str, list[str]]:
    """The service's tables as the log gives them; `connection` acts as the service, on empty tables."""
    events = list(log)
    async with connection.transaction():
        for projection in PROJECTIONS[service]:
            for event in events:
                if event.category in projection.durable.categories:
                    await projection.project(connection, event)
    return {table: await table_rows(connection, service, table) for table in TABLES[service]}
