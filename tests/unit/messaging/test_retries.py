"""What is waited out, what is counted, and how long the pauses are."""

import asyncpg
import pytest

from shared.eventstore.api import VersionConflict
from shared.messaging.handling import Retries, is_passing
from shared.problems import Rejected, Unavailable


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("billing does not answer"),
        VersionConflict("job-1", 1, 2),
        Rejected("version_conflict", "it kept changing"),
        ConnectionResetError(),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.SerializationError(),
        asyncpg.DeadlockDetectedError(),
        asyncpg.AdminShutdownError(),
        asyncpg.TooManyConnectionsError(),
    ],
)
def test_outage_or_race_is_waited_out(error: Exception) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        Rejected("job_not_found", "no such job"),
        ZeroDivisionError(),
        KeyError("x"),
        FileNotFoundError("x"),
        asyncpg.UniqueViolationError(),
        asyncpg.DataError("an argument that cannot be encoded"),
        asyncpg.UndefinedTableError(),
    ],
)
def test_error_of_the_event_itself_is_counted(error: Exception) -> None:
    assert not is_passing(error)


def test_pauses_double_up_to_the_longest() -> None:
    retries = Retries(first_pause_s=0.1, longest_pause_s=1.0)
    assert [retries.pause_s(attempt) for attempt in (0, 1, 2, 3, 4, 1000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
