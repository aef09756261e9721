"""One byte of one stored event changed by a superuser: `tunewright verify` names that event."""

import json

import asyncpg
import pytest

from tests.acceptance.conftest import Road
from tests.support.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_FLIP = """
UPDATE log.events SET data = set_byte(data, $2, get_byte(data, $2) # 1) WHERE global_position = $1
"""


async def _flip_a_byte(dsn: str, position: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("ALTER TABLE log.events DISABLE TRIGGER append_only")
            await connection.execute(_FLIP, position, 20)
            await connection.execute("ALTER TABLE log.events ENABLE ALWAYS TRIGGER append_only")
    finally:
        await connection.close()


async def test_changed_byte_is_named_by_verify(system: System, road: Road) -> None:
    (queued,) = road.of_type("job.queued.v1")
    position = queued["global_position"]
    await _flip_a_byte(system.superuser_dsn(), position)
    try:
        done = system.tunewright("verify", "--json")
    finally:
        await _flip_a_byte(system.superuser_dsn(), position)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert position in [fault["position"] for fault in report["faults"]]
    assert system.tunewright("verify", "--json").returncode == 0


async def test_superuser_is_stopped_by_the_trigger_unless_it_is_switched_off(system: System, road: Road) -> None:
    connection = await asyncpg.connect(system.superuser_dsn())
    try:
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await connection.execute(_FLIP, road.events[0]["global_position"], 20)
    finally:
        await connection.close()
