"""`log.readable`, the log for people in psql, shows every event whatever its texts hold."""

import asyncpg

from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_append


async def test_text_with_a_nul_hides_no_event_from_people(log_database: LogDatabase, store_for: StoreFor) -> None:
    store = await store_for("scheduler")
    for text in ("before", "a\0b \\u0041 \\", "after"):
        await store.append(an_append(a_job_stream(), a_fact(text)))
    connection = await asyncpg.connect(log_database.dsn("inspector"))
    try:
        shown = await connection.fetch("select data->>'fact' as fact from log.readable order by global_position")
    finally:
        await connection.close()
    assert [row["fact"] for row in shown] == ["before", "a\ufffdb \\u0041 \\", "after"]
