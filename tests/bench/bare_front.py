"""The least that a submit can be: a Litestar POST that appends one event, in one process; DATABASE_URL and PORT."""

import asyncio
import os
import socket
from typing import Any
from uuid import uuid4

import asyncpg
import uvicorn
import uvloop
from litestar import Litestar, post

from shared.clock import utc_now
from shared.contracts.envelope import EventMetadata
from shared.contracts.job import JobSubmitted
from shared.eventstore.api import Append
from shared.eventstore.postgres import PostgresEventStore


def make_app(store: PostgresEventStore) -> Litestar:
    """One route; it answers after the commit, like ours."""

    @post("/api/cloud/jobs/submit", status_code=200)
    async def submit(data: dict[str, Any]) -> dict[str, str]:
        job_id = uuid4()
        event = JobSubmitted(
            user_id="local",
            provider="local",
            priority=10,
            config=data["config"],
            dataloader=data["dataloader_config"],
            datasets=[],
            config_name=None,
            tracker_run_name=None,
            idempotency_key=None,
            account="local",
            submitted_at=utc_now(),
        )
        meta = EventMetadata(actor="user:local")
        await store.append(
            Append(stream=f"job-{job_id}", expected_version=0, events=(event,), meta=meta, correlation_id=job_id)
        )
        return {"job_id": str(job_id)}

    return Litestar(route_handlers=[submit], openapi_config=None, logging_config=None)


async def _be_scheduler(connection: asyncpg.Connection) -> None:
    await connection.execute("set session authorization scheduler")


async def serve(dsn: str, bound: socket.socket) -> None:
    """Serves until the process is ended. `dsn` is the superuser's: roles have the passwords of the site beside us."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4, init=_be_scheduler) as pool:
        store = PostgresEventStore(pool)
        config = uvicorn.Config(make_app(store), log_config=None, access_log=False, lifespan="off", http="httptools")
        await uvicorn.Server(config).serve(sockets=[bound])
        await asyncio.shield(store.close())


if __name__ == "__main__":
    uvloop.run(serve(os.environ["DATABASE_URL"], socket.create_server(("127.0.0.1", int(os.environ["PORT"])))))
