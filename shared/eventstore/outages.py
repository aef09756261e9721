"""Which database errors mean "try later": the difference between an outage and a bug."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

import asyncpg

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

_log = logging.getLogger(__name__)


@contextmanager
def unavailable_on_outage(what: str) -> Generator[None]:
    """Turns an outage into Unavailable; every other error goes through as it is."""
    try:
        yield
    except OUTAGES as error:
        if isinstance(error, ValueError):  # asyncpg calls an argument it cannot encode an InterfaceError too
            raise
        _log.warning("eventstore.postgres.unavailable", extra={"what": what, "error": repr(error)})
        raise Unavailable(f"the log does not answer ({what})") from error
