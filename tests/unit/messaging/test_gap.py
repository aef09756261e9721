"""When the headers prove that no event is missing, and when the log has to be asked."""

from itertools import combinations
from types import SimpleNamespace
from typing import cast
from uuid import UUID, uuid4

import msgspec
import pytest
from nats.aio.msg import Msg

from shared.clock import utc_now
from shared.contracts.envelope import EventMetadata, RecordedEvent
from shared.contracts.subjects import BILLING_LEDGER, BILLING_METERING
from shared.messaging import gap

STORE = uuid4()


def an_event(position: int, category: str = "account") -> RecordedEvent:
    return RecordedEvent(
        global_position=position,
        event_id=uuid4(),
        stream=f"{category}-{uuid4()}",
        stream_version=1,
        type=f"{category}.opened.v1",
        data=msgspec.Raw(b"{}"),
        meta=EventMetadata(),
        correlation_id=uuid4(),
        recorded_at=utc_now(),
        hash=b"h" * 32,
    )


def a_message(position: int, previous: str | None, *, store: UUID = STORE, body: bytes | None = None) -> Msg:
    headers = {gap.MESSAGE_ID_HEADER: f"{store}:{position}"}
    if previous is not None:
        headers[gap.PREVIOUS_HEADER] = previous
    data = msgspec.json.encode(an_event(position)) if body is None else body
    return cast("Msg", SimpleNamespace(headers=headers, data=data, subject="evt.account.opened.x"))


def deliveries(*pairs: tuple[int, str | None]) -> list[gap.Delivery]:
    read = [gap.read(a_message(position, previous), STORE) for position, previous in pairs]
    return [delivery for delivery in read if delivery is not None]


@pytest.mark.parametrize(
    ("checkpoint", "pairs", "proven"),
    [
        (0, [(1, "0")], True),
        (5, [(9, "5"), (12, "9")], True),
        (7, [(9, "5")], True),  # the checkpoint lies beyond the category's last event
        (5, [(9, "7")], False),
        (5, [(9, "5"), (14, "12")], False),
        (5, [(9, None)], False),
        (5, [(9, "-1")], False),
        (5, [], True),
    ],
)
def test_one_category_is_proven_by_its_chain(
    checkpoint: int, pairs: list[tuple[int, str | None]], *, proven: bool
) -> None:
    assert gap.is_contiguous(checkpoint, deliveries(*pairs), BILLING_LEDGER) is proven


def of_each(position: int, category: str, stated: str) -> gap.Delivery:
    headers = {gap.MESSAGE_ID_HEADER: f"{STORE}:{position}", gap.PREVIOUS_OF_EACH_HEADER: stated}
    body = msgspec.json.encode(an_event(position, category))
    message = cast("Msg", SimpleNamespace(headers=headers, data=body, subject=f"evt.{category}.opened.x"))
    read = gap.read(message, STORE)
    assert read is not None
    return read


def test_several_categories_are_not_proven_by_the_chain_of_one() -> None:
    assert not gap.is_contiguous(5, deliveries((6, "5")), BILLING_METERING)


@pytest.mark.parametrize(
    ("stated", "proven"),
    [
        ("account=9,attempt=5,job=3,provider=2", True),  # the account's event is not of this durable
        ("attempt=5,job=6,provider=2", False),
        ("attempt=5,job=3", False),
        ("attempt=5,job=", False),
        ("attempt=5,job=-1", False),
        ("attempt=5;job=3", False),
        ("", False),
    ],
)
def test_several_categories_are_proven_when_each_is_stated(stated: str, *, proven: bool) -> None:
    assert gap.is_contiguous(5, [of_each(10, "attempt", stated)], BILLING_METERING) is proven


def test_headers_prove_exactly_the_deliveries_without_a_gap() -> None:
    """Every choice of deliveries from a log of three categories, of which the durable reads two."""
    log = ["job", "account", "attempt", "job", "account", "attempt", "attempt", "job"]
    last = dict.fromkeys([*log, "provider"], 0)
    all_: list[gap.Delivery] = []
    for position, category in enumerate(log, 1):
        stated = ",".join(f"{one}={previous}" for one, previous in last.items())
        if category in BILLING_METERING.categories:
            all_.append(of_each(position, category, stated))
        last[category] = position
    for count in range(1, len(all_) + 1):
        for chosen in combinations(all_, count):
            for checkpoint in range(len(log)):
                due = [one for one in all_ if checkpoint < one.event.global_position]
                fresh = [one for one in chosen if one in due]
                assert gap.is_contiguous(checkpoint, fresh, BILLING_METERING) is (fresh == due[: len(fresh)])


def test_message_of_another_log_is_not_read() -> None:
    assert gap.read(a_message(1, "0", store=uuid4()), STORE) is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"{}", b"[1]"])
def test_message_that_is_no_event_is_not_read(body: bytes) -> None:
    assert gap.read(a_message(1, "0", body=body), STORE) is None
