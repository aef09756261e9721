"""The loop that makes room for telemetry day by day and drops what is past its retention."""

import asyncio
from datetime import timedelta

import asyncpg
import structlog

from services.storage.outbound import reports
from shared.clock import Clock

EVERY_S = 3600.0
AFTER_FAILURE_S = 10.0

log = structlog.stdlib.get_logger()


async def keep_report_days(pool: asyncpg.Pool, clock: Clock, retention_days: int, stop: asyncio.Event) -> None:
    """Once an hour until `stop` is set: today and tomorrow have a partition, days past their retention are gone."""
    while not stop.is_set():
        wait_s = EVERY_S
        try:
            await turn_report_days(pool, clock, retention_days)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            log.warning("storage.report_days.failed", exc_info=error)
            wait_s = AFTER_FAILURE_S
        try:
            async with asyncio.timeout(wait_s):
                await stop.wait()
        except TimeoutError:
            continue


async def turn_report_days(pool: asyncpg.Pool, clock: Clock, retention_days: int) -> int:
    """Makes the partitions of today and tomorrow; answers how many old days were dropped."""
    today = clock().date()
    await reports.ensure_partition(pool, today)
    await reports.ensure_partition(pool, today + timedelta(days=1))
    dropped = await reports.drop_partitions(pool, today - timedelta(days=retention_days))
    if dropped:
        log.info("storage.report_days.dropped", days=dropped)
    return dropped
