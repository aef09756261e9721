"""Which database errors mean "try later": the difference between an outage and a bug."""

from collections.abc import Generator
from contextlib import contextmanager

import asyncpg
import structlog

from shared.problems import Unavailable

OUTAGES: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
"""The server is away, restarting, out of connections or locks, or did not answer in time."""

log = structlog.stdlib.get_logger()


@contextmanager
def unavailable_on_outage(what: str) -> Generator[None]:
    """Turns an outage into Unavailable; every other error goes through as it is."""
    try:
        yield
    except OUTAGES as error:
        if isinstance(error, ValueError):  # asyncpg calls an argument it cannot encode an InterfaceError too
            raise
        log.warning("eventstore.postgres.unavailable", what=what, error=repr(error))
        raise Unavailable(f"the log does not answer ({what})") from error
