"""A view that is behind, and a gateway that is asked to stop: nobody is refused or cut off because of either."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from shared.contracts.subjects import GATEWAY_JOBS_VIEW
from tests.integration.gateway.conftest import Site
from tests.support.log import LogDatabase
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def patient_reads() -> None:
    """What a view that is behind costs is what is tested here: the product's own patience."""


HOLD = "SELECT position FROM gateway.checkpoint WHERE durable = $1 FOR UPDATE"


@asynccontextmanager
async def view_held_back(site: Site, database: LogDatabase) -> AsyncGenerator[None]:
    """The gateway's projection waits at its checkpoint, as it does during a rebuild."""
    await site.http.post("/api/cloud/jobs/sync")
    connection = await asyncpg.connect(database.superuser_dsn)
    try:
        async with connection.transaction():
            assert await connection.fetchval(HOLD, GATEWAY_JOBS_VIEW.name) is not None
            yield
    finally:
        await connection.close()


async def test_view_that_is_behind_refuses_no_client_and_no_trainer(site: Site, log_database: LogDatabase) -> None:
    await site.submit()
    async with view_held_back(site, log_database):
        job_id = await site.submit(tracker_run_name="mine")
        assert (await site.job(job_id))["metadata"]["tracker_run_name"] == "mine"
        trainer = await site.trainer(job_id)
        hello = await trainer.report([("hello", {"device": "stand-in", "trainer_version": "0"})])
        assert (hello.status_code, hello.json()["ack"]) == (200, 1)
        assert (await trainer.put("x.bin", b"x")).status_code == 200
        (dataset,) = (await site.http.get(f"/api/v1/jobs/{job_id}")).json()["job"]["datasets"]
        fetch = await site.http.get(
            f"/api/v1/datasets/{dataset['sha256']}", headers={"Authorization": f"Bearer {trainer.token}"}
        )
        assert fetch.status_code in {200, 503}
        listed = (await site.http.get("/api/cloud/jobs")).json()
        assert listed["total"] == 1  # lists alone come from the view
        cancelled = await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")
        assert cancelled.status_code == 200
    await site.until_status(job_id, "cancelled")

    async def both_are_listed() -> bool:
        return (await site.http.get("/api/cloud/jobs?sync_active=true")).json()["total"] == 2

    await eventually(both_are_listed)


async def test_ended_attempts_token_writes_and_reads_nothing_while_the_view_is_behind(
    site: Site, log_database: LogDatabase
) -> None:
    trainer = await site.running()
    (dataset,) = (await site.http.get(f"/api/v1/jobs/{trainer.job_id}")).json()["job"]["datasets"]
    async with view_held_back(site, log_database):
        assert (await trainer.put("x.bin", b"x")).status_code == 200
        failed = await trainer.report([("failed", {"kind": "crash", "message": "over"})])
        assert failed.status_code == 200, failed.text
        upload = await trainer.put("y.bin", b"y")
        assert (upload.status_code, upload.json()["code"]) == (409, "attempt_superseded")
        fetch = await site.http.get(
            f"/api/v1/datasets/{dataset['sha256']}", headers={"Authorization": f"Bearer {trainer.token}"}
        )
        assert (fetch.status_code, fetch.json()["code"]) == (409, "attempt_superseded")


async def test_upload_in_flight_finishes_when_the_gateway_is_asked_to_stop(site: Site) -> None:
    trainer = await site.running()
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        under_way.set()
        await go_on.wait()
        yield b"y" * 300_000

    upload = asyncio.create_task(trainer.put("x.bin", chunks()))
    await under_way.wait()
    site.runtimes["gateway"].stop.set()
    go_on.set()
    assert (await upload).status_code == 200
