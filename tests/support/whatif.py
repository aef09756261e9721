"""What-if over events in memory, and over a log that was written."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from services.scheduler.domain.queue_policy import Limits
from services.scheduler.domain.whatif import WhatIf
from services.scheduler.domain.whatif_story import Mark
from shared.contracts import catalogue
from shared.contracts.envelope import RecordedEvent
from shared.contracts.whatif import Decisions, Policy, SimulatePolicy
from tests.support.bulk_log import PastEvent

CATEGORIES = {"job", "attempt"}


def asked(
    events: Sequence[PastEvent],
    policy: Policy | None = None,
    *,
    limits: Limits,
    after_position: int = 0,
    is_free: bool = False,
) -> WhatIf:
    """The answer, run to its end. `is_free`: on its own from the start, whether a decision differs or not."""
    question = SimulatePolicy(policy=policy or Policy(), after_position=after_position)
    what_if = WhatIf(question, limits, is_free=is_free)
    for position, past in enumerate(events, start=1):
        category, _, stream_id = past.stream.partition("-")
        if category in CATEGORIES:
            what_if.take(category, UUID(stream_id), past.event, Mark(position, past.recorded_at))
    for _ in what_if.finish():
        continue
    return what_if


def decided_again(history: Iterable[RecordedEvent]) -> Decisions:
    """What comes of taking every decision of a log again, under the policy in force."""
    what_if = WhatIf(SimulatePolicy(), Limits(in_all=0, per_user=0))
    for recorded in history:
        event = catalogue.decode(recorded) if recorded.category in CATEGORIES else None
        if event is not None:
            stream_id = UUID(recorded.stream.partition("-")[2])
            what_if.take(recorded.category, stream_id, event, Mark(recorded.global_position, recorded.recorded_at))
    for _ in what_if.finish():
        continue
    return what_if.report({}, {}, 0.0).decisions
