"""The ledger as tables: every posting, the balances, and what each job cost. Folded from `account` events alone."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from shared.contracts import catalogue
from shared.contracts.account import (
    AccountOpened,
    FundsCaptured,
    FundsReleased,
    FundsReserved,
    LateUsageCharged,
    Posting,
    UsageMetered,
)
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.problems import Rejected
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "queries.sql")
QUERY_TIMEOUT_S = 10.0
TABLES = ("accounts", "ledger_entries", "balances", "job_costs")


async def project(connection: Connection, recorded: RecordedEvent) -> None:
    """Adds one event's rows. Runs once for each event: sums are added to, not computed anew."""
    event = catalogue.decode(recorded)
    match event:
        case AccountOpened():
            row = (recorded.stream, event.owner, event.month, event.floor_micro_usd)
            await connection.execute(QUERIES.open_account, *row, timeout=QUERY_TIMEOUT_S)
        case FundsReserved():
            row = (event.job_id, recorded.stream, event.amount_micro_usd, event.price_micro_usd_per_hour)
            await connection.execute(QUERIES.add_job, *row, timeout=QUERY_TIMEOUT_S)
            await _post(connection, recorded, event.job_id, "reserved", event.postings, event.reserved_at)
        case UsageMetered():
            row = (event.job_id, event.seconds, event.amount_micro_usd)
            await connection.execute(QUERIES.add_usage, *row, timeout=QUERY_TIMEOUT_S)
        case FundsCaptured():
            row = (event.job_id, event.amount_micro_usd, event.captured_at)
            await connection.execute(QUERIES.capture_job, *row, timeout=QUERY_TIMEOUT_S)
            await _post(connection, recorded, event.job_id, "captured", event.postings, event.captured_at)
        case LateUsageCharged():
            row = (event.job_id, event.amount_micro_usd)
            await connection.execute(QUERIES.charge_late, *row, timeout=QUERY_TIMEOUT_S)
            await _post(connection, recorded, event.job_id, "captured", event.postings, event.charged_at)
        case FundsReleased():
            row = (event.job_id, event.amount_micro_usd)
            await connection.execute(QUERIES.release_job, *row, timeout=QUERY_TIMEOUT_S)
            await _post(connection, recorded, event.job_id, "released", event.postings, event.released_at)
        case _:
            return


async def _post(
    connection: Connection,
    recorded: RecordedEvent,
    job_id: UUID,
    type_: str,
    postings: Sequence[Posting],
    at: datetime,
) -> None:
    for line, posting in enumerate(postings, start=1):
        place = (recorded.global_position, line, recorded.stream, job_id, type_)
        money = (posting.ledger_account, posting.amount_micro_usd)
        await connection.execute(QUERIES.add_entry, *place, *money, at, timeout=QUERY_TIMEOUT_S)
        await connection.execute(QUERIES.add_to_balance, recorded.stream, *money, timeout=QUERY_TIMEOUT_S)


async def read_job_cost(pool: asyncpg.Pool, job_id: UUID) -> dict[str, object]:
    """The answer to `ReadJobCost`, as far as the ledger is folded; Rejected `not_found` before a reservation."""
    with unavailable_on_outage("read_job_cost"):
        cost = await pool.fetchrow(QUERIES.read_job_cost, job_id, timeout=QUERY_TIMEOUT_S)
        entries = await pool.fetch(QUERIES.read_job_entries, job_id, timeout=QUERY_TIMEOUT_S)
    if cost is None:
        raise Rejected("not_found", "Nothing was reserved for this job.", job_id=str(job_id))
    return {**cost, "entries": [{**entry, "at": entry["at"].isoformat()} for entry in entries]}
