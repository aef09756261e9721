"""A log that an earlier version recorded, folded by today's projections on a real Postgres, gives the rows it had."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared.contracts.subjects import SERVICES
from tests.golden.golden_events import only_known_then
from tests.history.refolding import refold
from tests.history.stored_log import HISTORIES, envelopes, read_expected, read_log
from tests.support.log import LogDatabase

LOGS = [pytest.param(path, id=path.stem) for path in sorted(HISTORIES.glob("*.jsonl"))]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by what they say: columns that were added since, and are left out, change how the texts sort."""
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.parametrize("path", LOGS)
async def test_every_read_model_refolds_to_the_rows_it_had(path: Path, log_database: LogDatabase) -> None:
    log, expected = envelopes(read_log(path)), read_expected(path)
    compared = 0
    for service in SERVICES:
        connection = await asyncpg.connect(log_database.dsn(service))
        try:
            tables = await refold(connection, service, log)
        finally:
            await connection.close()
        for table, lines in expected.tables[service].items():
            then = in_order([json.loads(line) for line in lines])
            now = [json.loads(line) for line in tables[table]]
            assert len(now) == len(then), f"{service}.{table}"
            columns = list(then[0]) if then else []
            known = in_order([{name: row[name] for name in columns} for row in now])
            pairs = zip(known, then, strict=True)
            assert [only_known_then(row, other) for row, other in pairs] == then, f"{service}.{table}"
            compared += len(then)
    assert compared > len(expected.stories)
