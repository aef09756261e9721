"""All JetStream data deleted while the system runs: transport is rebuilt from the log."""

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg
import nats.errors
import pytest

from shared.contracts.subjects import EVENTS_STREAM, STREAMS
from shared.eventstore.jetstream import JetStream, jetstream
from shared.messaging.connection import Bus, BusSettings
from shared.settings import Secret
from tests.support.system import System, await_value, demo_body

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class StreamNow:
    """What JetStream holds: when the stream was made, and the log position of its last event."""

    created: datetime
    position: int


def test_wiped_jetstream_is_rebuilt_and_every_read_model_equals_a_fresh_fold(system: System, pictures: Path) -> None:
    job_id = system.submit(demo_body(pictures, max_train_steps=60, checkpointing_steps=20, validation_disable=True))
    system.await_status(job_id, "running")
    before = await_value(120, "EVENTS holds something", lambda: asyncio.run(_events_stream(system)))

    asyncio.run(_delete_all_streams(system))

    rebuilt = await_value(120, "EVENTS was made anew", lambda: _newer(asyncio.run(_events_stream(system)), before))
    assert rebuilt.created > before.created
    system.await_status(job_id, "completed")
    await_value(120, "EVENTS ends where the log ends", lambda: asyncio.run(_is_whole(system)))
    head = system.history(job_id)[-1]["global_position"]
    await_value(120, "the view has passed the job's last event", lambda: _position(system, job_id) >= head)
    report = system.http.post("/api/v1/admin/rebuild", timeout=300).raise_for_status().json()
    projections = [item for service in report["services"].values() for item in service["projections"]]
    assert [item["name"] for item in projections if not item["equal"]] == []
    parked = system.http.get("/api/v1/admin/parked").raise_for_status().json()
    assert not any(service["parked"] for service in parked["services"].values())


def _position(system: System, job_id: str) -> int:
    return system.http.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()["job"]["position"]


def _newer(now: StreamNow | None, before: StreamNow) -> StreamNow | None:
    return now if now is not None and now.created > before.created else None


async def _connect(system: System) -> tuple[Bus, JetStream]:
    """The bus as the relay, the only user who may delete streams."""
    kept = json.loads((system.data_dir / "secrets.json").read_text(encoding="utf-8"))
    login = BusSettings(url=system.state["nats_url"], user="relay", password=Secret(kept["nats"]["relay"]))
    bus = await Bus.connect(login, service="relay")
    return bus, jetstream(bus.client)


async def _delete_all_streams(system: System) -> None:
    bus, streams = await _connect(system)
    try:
        for stream in STREAMS:
            assert await streams.delete_stream(stream.name)
    finally:
        await bus.close()


async def _events_stream(system: System) -> StreamNow | None:
    """The stream as it is now; None while there is none, nothing in it, or no answer."""
    bus, streams = await _connect(system)
    try:
        info = await streams.stream_info(EVENTS_STREAM)
        if info.state.messages == 0:  # made anew, and the relay has not filled it yet: it has no last message
            return None
        last = await streams.get_msg(EVENTS_STREAM, info.state.last_seq)
    except nats.errors.Error:  # it is away, or it is being made: BadRequest, no responders, a timeout
        return None
    finally:
        await bus.close()
    assert info.created is not None
    assert last.headers is not None
    return StreamNow(created=info.created, position=int(last.headers["Nats-Msg-Id"].rpartition(":")[2]))


async def _is_whole(system: System) -> bool:
    stream = await _events_stream(system)
    connection = await asyncpg.connect(system.state["log_dsn"])
    try:
        head = await connection.fetchval("SELECT max(global_position) FROM log.events")
    finally:
        await connection.close()
    return stream is not None and stream.position == head
