"""What can be had where, and how attempts went there: `domain/placement.py` chooses by it."""

from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from services.scheduler.domain.placement import BREAKS, KnownProvider, Market, Record
from shared.contracts import catalogue
from shared.contracts.attempt import (
    AttemptCancelled,
    AttemptFailed,
    AttemptLost,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
)
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Event
from shared.contracts.offers import Offer
from shared.contracts.provider import (
    ProviderBreakerMoved,
    ProviderConfigured,
    ProviderCredentialStored,
    ProviderOffersPublished,
    ProviderSuspended,
)
from shared.eventstore.group_commit import Connection
from shared.eventstore.outages import unavailable_on_outage
from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent.parent / "sql" / "market.sql")
QUERY_TIMEOUT_S = 10.0
TABLES = ("market_providers", "market_attempts", "market_records")

_offers = msgspec.json.Decoder(tuple[Offer, ...])
_AttemptEnd = AttemptSucceeded | AttemptFailed | AttemptCancelled | AttemptLost


async def read_market(pool: asyncpg.Pool) -> Market:
    """Everything that is known now; Unavailable when the database does not answer."""
    with unavailable_on_outage("read_market"):
        providers = await pool.fetch(QUERIES.read_providers, timeout=QUERY_TIMEOUT_S)
        records = await pool.fetch(QUERIES.read_records, timeout=QUERY_TIMEOUT_S)
    return Market(
        providers=tuple(
            KnownProvider(
                name=row["provider"],
                offers=_offers.decode(row["offers"]),
                suspended_until=row["suspended_until"],
                suspended_why=row["suspended_why"],
                breaker_open_until=row["breaker_open_until"],
            )
            for row in providers
        ),
        records={(row["provider"], row["hardware"]): _record(row) for row in records},
    )


async def project(connection: Connection, recorded: RecordedEvent) -> None:
    """Adds one event's rows. Runs once for each event: sums are added to, not computed anew."""
    event = catalogue.decode(recorded)
    if event is None:
        return
    if recorded.category == "provider":
        await _provider(connection, event)
    else:
        await _attempt(connection, UUID(recorded.stream.partition("-")[2]), event)


async def _provider(connection: Connection, event: Event) -> None:
    match event:
        case ProviderOffersPublished():
            offers = msgspec.json.encode(event.offers)
            await connection.execute(QUERIES.save_offers, event.provider, offers, timeout=QUERY_TIMEOUT_S)
        case ProviderSuspended():
            row = (event.provider, event.until, event.message)
            await connection.execute(QUERIES.save_suspension, *row, timeout=QUERY_TIMEOUT_S)
        case ProviderConfigured() | ProviderCredentialStored():
            row = (event.provider, None, "")
            await connection.execute(QUERIES.save_suspension, *row, timeout=QUERY_TIMEOUT_S)
        case ProviderBreakerMoved():
            row = (event.provider, event.retry_at if event.state == "open" else None)
            await connection.execute(QUERIES.save_breaker, *row, timeout=QUERY_TIMEOUT_S)
        case _:
            return


async def _attempt(connection: Connection, attempt_id: UUID, event: Event) -> None:
    match event:
        case AttemptRequested():
            resumed_step = event.resume.step if event.resume else 0
            row = (attempt_id, event.provider, event.quote.hardware, resumed_step)
            await connection.execute(QUERIES.note_attempt, *row, timeout=QUERY_TIMEOUT_S)
        case AttemptStartIntended():
            await connection.execute(QUERIES.note_intent, attempt_id, event.intended_at, timeout=QUERY_TIMEOUT_S)
        case AttemptStarted():
            row = (attempt_id, event.started_at)
            known = await connection.fetchrow(QUERIES.note_start, *row, timeout=QUERY_TIMEOUT_S)
            if known is not None and known["intended_at"] is not None:
                await _add(connection, known, Record(boots=1, boot_s=_between(known["intended_at"], event.started_at)))
        case AttemptSucceeded() | AttemptFailed() | AttemptCancelled() | AttemptLost():
            known = await connection.fetchrow(QUERIES.forget_attempt, attempt_id, timeout=QUERY_TIMEOUT_S)
            if known is not None:
                await _add(connection, known, _observed(event, known))
        case _:
            return


def _observed(event: _AttemptEnd, known: asyncpg.Record) -> Record:
    """What the end of an attempt says of its hardware; one that was cancelled, or never started, says nothing."""
    match event:
        case AttemptSucceeded():
            steps = max(0, event.steps - known["resumed_step"])
            started_at = known["started_at"] or event.ended_at
            return Record(ended=1, steps=steps, run_s=_between(started_at, event.ended_at))
        case AttemptFailed() if known["started_at"] is not None or event.kind in BREAKS:
            return Record(ended=1, broke=int(event.kind in BREAKS))
        case AttemptLost():
            return Record(ended=1, broke=1)
        case _:
            return Record()


async def _add(connection: Connection, known: asyncpg.Record, seen: Record) -> None:
    if seen != Record():
        row = (known["provider"], known["hardware"], *msgspec.structs.astuple(seen))
        await connection.execute(QUERIES.add_to_record, *row, timeout=QUERY_TIMEOUT_S)


def _record(row: asyncpg.Record) -> Record:
    return Record(**{name: row[name] for name in Record.__struct_fields__})


def _between(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin).total_seconds())
