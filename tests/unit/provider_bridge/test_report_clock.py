"""A trainer's clock is not believed beyond our own."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from services.provider_bridge.attempt_stream import attempt_stream
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.outbound.directory import FixedProviders
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptLeased,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
    Quote,
    ReportMilestone,
)
from shared.contracts.catalogue import decode
from shared.contracts.envelope import CommandEnvelope, EventMetadata
from shared.eventstore.api import Append
from shared.eventstore.memory import MemoryEventStore
from shared.ids import new_id

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
BEGUN = NOW - timedelta(seconds=60)


async def _running_attempt(log: MemoryEventStore, attempt_id: UUID, job_id: UUID) -> None:
    requested = AttemptRequested(
        job_id=job_id,
        attempt_number=1,
        provider="local",
        quote=Quote(hardware="cpu", price_micro_usd_per_hour=0),
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        requested_at=BEGUN,
    )
    events = [
        requested,
        AttemptLeased(epoch=1, owner="bridge", leased_at=BEGUN),
        AttemptStartIntended(epoch=1, token_sha256="0" * 64, intended_at=BEGUN),
        AttemptAccepted(epoch=1, provider_ref="ref", accepted_at=BEGUN),
        AttemptStarted(started_at=BEGUN, device="cpu"),
    ]
    stream = attempt_stream(attempt_id)
    meta = EventMetadata(actor="test")
    await log.append(Append(stream=stream, expected_version=0, events=events, meta=meta, correlation_id=job_id))


async def test_report_from_the_future_is_billed_up_to_now_only() -> None:
    log, attempt_id, job_id = MemoryEventStore(), new_id(), new_id()
    await _running_attempt(log, attempt_id, job_id)
    handlers = AttemptHandlers(log, FixedProviders([]), lambda: NOW, lambda _attempt: None)
    done = ReportMilestone(
        attempt_id=attempt_id, seq=9, report_type="done", data={"steps": 5}, at=NOW + timedelta(hours=3)
    )
    envelope = CommandEnvelope(command_id=new_id(), correlation_id=job_id, payload=msgspec.Raw(b"{}"))
    await handlers.report(done, envelope)
    ended = decode((await log.read_stream(attempt_stream(attempt_id)))[-1])
    assert isinstance(ended, AttemptSucceeded)
    assert (ended.ended_at, ended.billed_seconds) == (NOW, 60)
