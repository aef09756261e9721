"""RecordReports and ReadReports over the bus, and the wake-up that follows the commit."""

from uuid import uuid4

import msgspec
import pytest

from deploy.embedded.nats import EmbeddedNats
from shared.contracts.artifact import ReadReports, RecordReports
from shared.problems import Rejected
from tests.integration.storage.conftest import StorageServer, a_report
from tests.support.bus import connected_bus


async def test_lines_are_committed_before_the_ack_and_read_back_as_sent(storage: StorageServer) -> None:
    job, attempt = uuid4(), uuid4()
    sent = [a_report(job, attempt, 1, "hello", device="cpu"), a_report(job, attempt, 2, "metrics", step=1, loss=0.5)]
    reply = await storage.send(RecordReports(job_id=job, attempt_id=attempt, lines=sent))
    assert reply.data == {"ack": 2}
    assert await storage.runtime.pool.fetchval("SELECT count(*) FROM reports WHERE attempt_id = $1", attempt) == 2
    page = await storage.send(ReadReports(job_id=job))
    assert page.data == {"lines": sent, "cursors": [1, 2], "cursor": 2}


async def test_a_refused_batch_stores_none_of_its_lines(storage: StorageServer) -> None:
    job, attempt = uuid4(), uuid4()
    with pytest.raises(Rejected) as refusal:
        await storage.send(
            RecordReports(job_id=job, attempt_id=attempt, lines=[a_report(job, attempt, 1), a_report(job, attempt, 0)])
        )
    assert refusal.value.code == "validation_error"
    assert (await storage.send(ReadReports(job_id=job))).data["lines"] == []


async def test_who_follows_a_job_is_woken_with_a_cursor_that_can_be_read(
    storage: StorageServer, bus_server: EmbeddedNats
) -> None:
    job, attempt = uuid4(), uuid4()
    async with connected_bus(bus_server, "gateway") as bus:
        waking = await bus.client.subscribe(f"tel.{job}.>")  # pyright: ignore[reportUnknownMemberType]
        await bus.client.flush()
        await storage.send(
            RecordReports(
                job_id=job,
                attempt_id=attempt,
                lines=[a_report(job, attempt, 1), a_report(job, attempt, 2), a_report(job, attempt, 3, "metrics")],
            )
        )
        woken = [await waking.next_msg(timeout=60) for _ in range(2)]
    told = {message.subject.rpartition(".")[2]: msgspec.json.decode(message.data)["cursor"] for message in woken}
    assert told == {"log": 2, "metrics": 3}
    page = await storage.send(ReadReports(job_id=job, after=told["log"]))
    assert page.data["cursors"] == [3]
