"""When the headers prove that no event is missing, and when the log has to be asked."""

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


def an_event(position: int) -> RecordedEvent:
    return RecordedEvent(
        global_position=position,
        event_id=uuid4(),
        stream=f"account-{uuid4()}",
        stream_version=1,
        type="account.opened.v1",
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


def test_several_categories_are_never_proven_by_one_chain() -> None:
    assert not gap.is_contiguous(5, deliveries((6, "5")), BILLING_METERING)


def test_message_of_another_log_is_not_read() -> None:
    assert gap.read(a_message(1, "0", store=uuid4()), STORE) is None


@pytest.mark.parametrize("body", [b"", b"\xff", b"{}", b"[1]"])
def test_message_that_is_no_event_is_not_read(body: bytes) -> None:
    assert gap.read(a_message(1, "0", body=body), STORE) is None
