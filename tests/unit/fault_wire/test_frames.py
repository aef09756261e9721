"""The proxies cut each protocol into frames without losing a byte, and name the steps that stand in them."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Callable

import pytest

from shared.eventstore.queries import QUERIES as LOG
from shared.messaging.inbox import QUERIES as INBOX
from tests.fault.http_frames import HttpTalk
from tests.fault.links import Bytes, Frame
from tests.fault.nats_frames import NatsTalk
from tests.fault.postgres_frames import PostgresTalk

INT_ARRAY, TEXT_ARRAY = 23, 25


async def frames(direction: Callable[[Bytes], AsyncGenerator[Frame]], *sent: bytes) -> list[tuple[str, ...]]:
    """The steps of each frame that has any; the bytes of all frames are the bytes that were sent."""
    source = asyncio.StreamReader()
    source.feed_data(b"".join(sent))
    source.feed_eof()
    cut = [frame async for frame in direction(source)]
    assert b"".join(frame.data for frame in cut) == b"".join(sent)
    return [frame.steps for frame in cut if frame.steps]


# ---- NATS ------------------------------------------------------------------------------------------------------------


def carrying(head: str, payload: bytes, headers: bytes = b"") -> bytes:
    """PUB, MSG or, with headers, HPUB, HMSG."""
    sizes = f"{len(headers)} {len(headers) + len(payload)}" if headers else str(len(payload))
    return f"{head} {sizes}\r\n".encode() + headers + payload + b"\r\n"


async def test_a_command_is_named_when_it_comes_and_when_its_own_inbox_is_answered() -> None:
    talk = NatsTalk()
    came = carrying("MSG cmd.billing.settle_job 7 _INBOX.a", b"{}")
    assert await frames(talk.answers, b"PING\r\n", came) == [("command:billing.settle_job:received",)]
    other, own = carrying("PUB _INBOX.b", b"x"), carrying("PUB _INBOX.a", b"line\r\nPUB _INBOX.a 1\r\n")
    assert await frames(talk.requests, other, own, own) == [("command:billing.settle_job:answered",)]


async def test_an_event_is_named_on_its_way_in_at_its_acknowledgement_and_at_each_durable() -> None:
    talk = NatsTalk()
    event, headers = b'{"type":"job.queued.v1","data":{}}', b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
    out = carrying("HPUB evt.job.queued.1 _INBOX.c.1", event, headers)
    assert await frames(talk.requests, out) == [("relay:job.queued.v1:before-publish",)]
    assert await frames(talk.answers, carrying("MSG _INBOX.c.1 3", b"{}")) == [("relay:job.queued.v1:published",)]
    ack = "$JS.ACK.EVENTS.billing__metering.1.2.3.4.5"
    came = carrying(f"HMSG evt.job.queued.1 9 {ack}", event, headers)
    assert await frames(talk.answers, came) == [("deliver:billing__metering:job.queued.v1",)]
    acks = [carrying(f"PUB {ack}", b"+WPI"), carrying(f"PUB {ack}", b"+ACK")]
    assert await frames(talk.requests, *acks) == [("ack:billing__metering:before",)]


# ---- Postgres --------------------------------------------------------------------------------------------------------


def message(letter: bytes, body: bytes) -> bytes:
    return letter + struct.pack("!i", len(body) + 4) + body


def values(*given: bytes | None) -> bytes:
    return b"".join(struct.pack("!i", -1 if one is None else len(one)) + (one or b"") for one in given)


def array(kind: int, *given: bytes) -> bytes:
    return struct.pack("!iiiii", 1, 0, kind, len(given), 1) + values(*given)


def bound(statement: bytes, *given: bytes) -> bytes:
    return message(b"B", b"\0" + statement + b"\0" + struct.pack("!hhh", 1, 1, len(given)) + values(*given))


def parsed(statement: bytes, text: str) -> bytes:
    return message(b"P", statement + b"\0" + text.encode() + b"\0" + struct.pack("!h", 0))


def appended(*types: bytes, counts: tuple[int, ...]) -> bytes:
    """What asyncpg sends to append: each command has as many events as `counts` says."""
    sizes = array(INT_ARRAY, *(struct.pack("!i", count) for count in counts))
    empty = array(TEXT_ARRAY)
    names = array(TEXT_ARRAY, *types)
    return bound(b"s1", empty, empty, empty, sizes, empty, names, empty, empty) + SYNC


def row(*columns: bytes | None) -> bytes:
    return message(b"D", struct.pack("!h", len(columns)) + values(*columns))


STARTUP = struct.pack("!ii", 8, 196608)
SYNC = message(b"S", b"")
COMMIT = message(b"Q", b"COMMIT;\0")
IDLE, OPEN = message(b"Z", b"I"), message(b"Z", b"T")
WON, LOST = row(b"\0\0\0\1", b"8 bytes.", b"8 bytes.", b"\0\0\0\1"), row(b"\0\0\0\2", None, None, b"\0\0\0\1")


async def test_an_append_is_named_before_it_and_when_it_is_committed_but_a_refused_command_is_not() -> None:
    talk = PostgresTalk()
    asked = appended(b"job.queued.v1", b"job.failed.v1", b"job.deleted.v1", counts=(2, 1))
    before = await frames(talk.requests, STARTUP, parsed(b"s1", LOG.append_batch), asked)
    assert before == [tuple(f"append:job.{name}.v1:before" for name in ("queued", "failed", "deleted"))]
    after = await frames(talk.answers, WON, LOST, IDLE)
    assert after == [("append:job.queued.v1:committed", "append:job.failed.v1:committed")]


async def test_an_append_in_a_transaction_is_committed_by_its_commit_and_names_the_rows_of_its_durable() -> None:
    talk = PostgresTalk()
    texts = [parsed(b"s1", LOG.append_batch), parsed(b"s2", INBOX.claim_events)]
    asked = [appended(b"job.dispatched.v1", counts=(1,)), bound(b"s2", b"scheduler__queue") + SYNC]
    assert await frames(talk.requests, STARTUP, *texts, *asked) == [("append:job.dispatched.v1:before",)]
    assert await frames(talk.answers, WON, OPEN, OPEN) == []
    before = await frames(talk.requests, STARTUP, COMMIT)
    assert before == [("append:job.dispatched.v1:before-commit", "rows:scheduler__queue:before-commit")]
    committed = await frames(talk.answers, message(b"C", b"COMMIT\0"), IDLE)
    assert committed == [("append:job.dispatched.v1:committed", "rows:scheduler__queue:committed")]


async def test_what_failed_is_not_named_as_committed() -> None:
    talk = PostgresTalk()
    await frames(talk.requests, STARTUP, parsed(b"s1", LOG.append_batch), appended(b"job.queued.v1", counts=(1,)))
    assert await frames(talk.answers, message(b"E", b"SERROR\0\0"), IDLE) == []


# ---- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_an_upload_is_named_at_its_head_once_in_its_middle_and_at_its_answer(*, is_chunked: bool) -> None:
    talk = HttpTalk("gateway")
    body = b"x" * 10_000
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 10000"
    head = b"PUT /api/cloud/storage/outputs/1/a/b HTTP/1.1\r\n" + framing + b"\r\n\r\n"
    sent = b"1388\r\n" + body[:5000] + b"\r\n1388\r\n" + body[5000:] + b"\r\n0\r\n\r\n" if is_chunked else body
    other = b"GET /api/cloud/jobs/ HTTP/1.1\r\n\r\n"
    assert await frames(talk.requests, head, sent, other) == [
        ("http:gateway:put_object:received",),
        ("http:gateway:put_object:mid-body",),
    ]
    answers = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]
    later = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n[{}]"
    assert await frames(talk.answers, *answers, later) == [("http:gateway:put_object:answered",)]
