"""Frames on the wire, and what a slow client gets."""

import asyncio

import pytest

from services.gateway.domain.event_frames import progress_body, update_body, update_name
from services.gateway.inbound.feed import QUEUE_FRAMES, Subscriber
from services.gateway.inbound.http.sse import cursor_of, frame, json_frame
from services.gateway.inbound.log_stream import SharedReads
from shared.problems import Unavailable
from tests.unit.gateway.builders import StoryTeller


def test_frame_names_its_event_and_id() -> None:
    assert frame("hi", event="e", id_=7, retry_ms=5) == b"retry: 5\nid: 7\nevent: e\ndata: hi\n\n"


def test_data_cannot_end_a_frame_or_forge_a_field() -> None:
    assert frame("a\n\nevent: x\r\ndata: y\rid: 9") == (
        b"data: a\ndata: \ndata: event: x\ndata: data: y\ndata: id: 9\n\n"
    )
    assert json_frame({"a": "x\ny"}, event="e").count(b"\n") == 3


def test_cursor_is_a_number_or_nothing() -> None:
    assert cursor_of("17") == 17
    assert [cursor_of(text) for text in (None, "", "x", "-1", "1" * 30, "1.5", "٣")] == [None] * 7


async def test_slow_client_is_told_and_dropped_and_slows_nobody() -> None:
    slow, quick = Subscriber("a", 0), Subscriber("b", 0)
    quick_frames = quick.frames(lambda: 0)
    for number in range(QUEUE_FRAMES + 5):
        for subscriber in (slow, quick):
            subscriber.offer(b"%d" % number, 1)
        assert await anext(quick_frames) == b"%d" % number
    got = [one async for one in slow.frames(lambda: 0)]
    assert got[:-1] == [b"%d" % number for number in range(QUEUE_FRAMES)]
    assert got[-1].startswith(b"event: error\n")
    assert not quick.dropped


async def test_end_of_the_feed_ends_the_stream() -> None:
    subscriber = Subscriber("a", 0)
    subscriber.offer(b"x", 1)
    subscriber.end()
    assert [one async for one in subscriber.frames(lambda: 0)] == [b"x"]


async def test_block_that_is_too_large_for_what_is_unread_drops_the_client_with_what_it_had() -> None:
    subscriber = Subscriber("a", 0)
    subscriber.offer(b"first", 1)
    subscriber.offer(b"many", QUEUE_FRAMES)
    got = [one async for one in subscriber.frames(lambda: 0)]
    assert got[0] == b"first"
    assert got[1].startswith(b"event: error\n")


async def test_followers_at_one_cursor_share_one_read() -> None:
    asked: list[int] = []
    go_on = asyncio.Event()

    async def read(cursor: int) -> str:
        asked.append(cursor)
        await go_on.wait()
        return f"after {cursor}"

    reads = SharedReads[int, str](read)
    async with asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(reads.get(7)) for _ in range(100)] + [tasks.create_task(reads.get(8))]
        await asyncio.sleep(0)
        go_on.set()
    assert [one.result() for one in followers] == ["after 7"] * 100 + ["after 8"]
    assert asked == [7, 8]
    assert await reads.get(7) == "after 7"
    assert asked == [7, 8, 7]


async def test_follower_who_reads_for_all_and_goes_away_takes_nobody_with_it() -> None:
    started = asyncio.Event()

    async def read(_cursor: int) -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    reads = SharedReads[int, str](read)
    first = asyncio.create_task(reads.get(7))
    await started.wait()
    second = asyncio.create_task(reads.get(7))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(Unavailable):
        await second
    assert first.cancelled()


def test_update_carries_the_event_without_config_or_token() -> None:
    story = StoryTeller().submitted().queued().running()
    for recorded in story.events:
        body = update_body(recorded, "queued")
        assert {"config", "dataloader", "token_sha256"}.isdisjoint(body["payload"])
        assert (body["job_id"], body["position"]) == (str(story.job_id), recorded.global_position)
    names = {recorded.category: update_name(recorded) for recorded in story.events}
    assert names == {
        "job": "cloud_job_update",
        "dataset": "lifecycle.stage",
        "account": "notification",
        "attempt": "training.status",
    }


def test_phase_and_metrics_lines_have_the_documented_names() -> None:
    job_id = StoryTeller().job_id
    assert progress_body(job_id, {"type": "metrics", "data": {"step": 1}})[0] == "training.progress"
    assert progress_body(job_id, {"type": "phase", "data": {}})[0] == "lifecycle.stage"
