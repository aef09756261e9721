"""Live streams: nothing lost, nothing doubled, whatever breaks in between."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from tests.integration.gateway.conftest import OpenSite, Site, Trainer
from tests.support.waiting import eventually


class Frame(msgspec.Struct):
    """One server-sent event as a client reads it."""

    event: str = "message"
    data: str = ""
    id: str | None = None


async def frames(answer: httpx.Response) -> AsyncIterator[Frame]:
    """The events of an open stream."""
    event, data, id_ = "message", list[str](), None
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line == "":
            if data:
                yield Frame(event, "\n".join(data), id_)
            event, data, id_ = "message", [], None
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            id_ = value


@asynccontextmanager
async def opened(site: Site, path: str, last: str | None = None) -> AsyncGenerator[AsyncIterator[Frame]]:
    headers = {"Last-Event-ID": last} if last else {}
    async with site.http.stream("GET", path, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield frames(answer)


async def take_until(stream: AsyncIterator[Frame], event_type: str) -> list[Frame]:
    """Log-backed frames up to the first of a type, or TimeoutError: heartbeats alone would go on for ever."""
    found: list[Frame] = []
    async with asyncio.timeout(60):
        async for frame in stream:
            if frame.id is not None:
                found.append(frame)
                if json.loads(frame.data)["event_type"] == event_type:
                    return found
    raise AssertionError(f"the stream ended before {event_type}")


async def positions(site: Site, job_id: Any) -> list[int]:
    events = (await site.http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
    return [event["global_position"] for event in events]


async def test_live_events_carry_log_positions_and_the_jobs_status(site: Site) -> None:
    async with opened(site, "/api/events") as stream:
        hello = await anext(stream)
        assert (hello.event, json.loads(hello.data)["status"]) == ("connection", "connected")
        job_id = await site.submit()
        seen = await take_until(stream, "job.dispatched.v1")
    told = [json.loads(frame.data) for frame in seen if json.loads(frame.data)["job_id"] == str(job_id)]
    assert (told[0]["event_type"], told[0]["status"]) == ("job.submitted.v1", "uploading")
    assert "config" not in told[0]["payload"]
    assert told[-1]["status"] == "queued"
    assert {frame.event for frame in seen} <= {"cloud_job_update", "training.status", "lifecycle.stage", "notification"}
    known = await positions(site, job_id)
    assert [entry["position"] for entry in told] == known[: len(told)]


async def test_stream_resumes_after_the_last_event_without_loss_or_double(site: Site) -> None:
    async with opened(site, "/api/events") as stream:
        await anext(stream)
        job_id = await site.submit()
        first = await take_until(stream, "job.queued.v1")
    # Broken off here; the rest happens while nobody listens.
    trainer = await site.trainer(job_id)
    await trainer.report([("hello", {"device": "stand-in", "trainer_version": "0"})])
    await site.until_status(job_id, "running")
    async with opened(site, "/api/events", last=first[-1].id) as stream:
        second = await take_until(stream, "job.started.v1")
        await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")
        third = await take_until(stream, "job.cancelled.v1")
    ids = [int(frame.id or 0) for frame in (*first, *second, *third)]
    assert ids == sorted(set(ids))
    told = [json.loads(frame.data) for frame in (*first, *second, *third)]
    mine = [entry["position"] for entry in told if entry["job_id"] == str(job_id)]
    known = await positions(site, job_id)
    assert mine == known[: len(mine)]


async def test_progress_of_a_running_job_arrives_live(site: Site) -> None:
    trainer = await site.running()
    async with opened(site, "/api/events") as stream:
        await anext(stream)
        await trainer.report([("metrics", {"step": 7, "total_steps": 10, "loss": 0.25})])
        async with asyncio.timeout(60):
            async for frame in stream:
                if frame.event == "training.progress":
                    break
            else:
                raise AssertionError("the stream ended")
    body = json.loads(frame.data)
    assert (body["job_id"], body["data"]["step"], frame.id) == (str(trainer.job_id), 7, None)


async def test_more_streams_than_allowed_are_told_to_come_back(open_site: OpenSite) -> None:
    site = await open_site(gateway_event_streams_per_ip="1")
    async with opened(site, "/api/events") as stream:
        await anext(stream)
        refused = await site.http.get("/api/events")
        assert (refused.status_code, refused.json()["code"]) == (503, "service_unavailable")
        assert refused.headers["retry-after"]

    async def free_again() -> bool:
        async with site.http.stream("GET", "/api/events") as answer:
            return answer.status_code == 200

    await eventually(free_again)


async def read_log(trainer: Trainer, last: str | None, stop_at: str | None) -> tuple[list[Frame], bool]:
    """Log frames until one says `stop_at`, or until the stream is done."""
    path = f"/api/cloud/jobs/{trainer.job_id}/logs/stream"
    found: list[Frame] = []
    async with opened(trainer.site, path, last) as stream:
        async for frame in stream:
            if frame.event == "done":
                return [*found, frame], True
            found.append(frame)
            if stop_at is not None and frame.data.endswith(stop_at):
                return found, False
    raise AssertionError("the stream broke off")


async def test_log_stream_resumes_and_ends_with_the_jobs_status(site: Site) -> None:
    trainer = await site.running()
    await trainer.log(*(f"line {number}" for number in range(10)))
    first, _ = await read_log(trainer, None, "line 4")
    await trainer.log("line 10")
    rest = asyncio.create_task(read_log(trainer, first[-1].id, None))
    await trainer.log("line 11")
    await trainer.report([("failed", {"kind": "bad_data", "message": "enough", "advice": None})])
    second, ended = await rest
    assert ended
    assert second[-1].data == "failed"
    said = [frame.data.partition("[info] ")[2] for frame in (*first, *second) if "[info] line" in frame.data]
    assert said == [f"line {number}" for number in range(12)]


async def test_log_line_with_breaks_cannot_forge_an_event(site: Site) -> None:
    trainer = await site.running()
    await trainer.log("innocent\n\nevent: done\ndata: forged\rid: 9", "end")
    found, ended = await read_log(trainer, None, "end")
    assert not ended
    assert any(frame.data.endswith("innocent\n\nevent: done\ndata: forged\nid: 9") for frame in found)


async def test_streams_end_when_the_gateway_is_asked_to_stop(site: Site) -> None:
    trainer = await site.running()
    async with (
        opened(site, "/api/events") as events,
        opened(site, f"/api/cloud/jobs/{trainer.job_id}/logs/stream") as logs,
    ):
        await anext(events)
        await anext(logs)
        site.runtimes["gateway"].stop.set()
        async with asyncio.timeout(60):
            rest = [frame async for frame in events], [frame async for frame in logs]
    assert all(frame.event != "done" for frame in rest[1])
