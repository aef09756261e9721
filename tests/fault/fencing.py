"""Who may write about a run: only the bridge that holds its newest lease, and each lease is newer than the last."""

from collections.abc import Sequence
from typing import Any

from shared.contracts.attempt import AttemptAccepted, AttemptLeased, AttemptStartIntended
from shared.contracts.catalogue import decode
from shared.contracts.envelope import RecordedEvent

_FENCED = (AttemptLeased, AttemptStartIntended, AttemptAccepted)


def stale_writes(history: Sequence[RecordedEvent]) -> list[str]:
    """Events of attempts that name another epoch than the one that was leased last, in words."""
    found: list[str] = []
    newest: dict[str, int] = {}
    for recorded in history:
        event: Any = decode(recorded) if recorded.category == "attempt" else None
        if not isinstance(event, _FENCED):
            continue
        leased = newest.get(recorded.stream, 0)
        if isinstance(event, AttemptLeased):
            newest[recorded.stream] = event.epoch
            if event.epoch > leased:
                continue
        elif event.epoch == leased:
            continue
        found.append(
            f"{recorded.stream}: {recorded.type} at {recorded.global_position} is of epoch {event.epoch}, "
            f"while {leased} was leased last"
        )
    return found
