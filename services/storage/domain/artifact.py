"""The `artifact-<id>` decider: every content an object key ever had, in order. The newest one is what the key names."""

from collections.abc import Sequence

import msgspec

from shared.contracts.artifact import ArtifactStored
from shared.contracts.job import Event
from shared.problems import Rejected

OUTPUTS = "outputs"
"""The only bucket a client may write to."""


class ArtifactState(msgspec.Struct, frozen=True, kw_only=True):
    """What one object key names now; None before it was first stored."""

    current: ArtifactStored | None = None
    version: int = 0


INITIAL = ArtifactState()


def evolve(state: ArtifactState, event: Event) -> ArtifactState:
    """Each stored content is the next version."""
    if isinstance(event, ArtifactStored):
        return ArtifactState(current=event, version=state.version + 1)
    return state


def decide(state: ArtifactState, stored: ArtifactStored) -> Sequence[Event]:
    """Nothing for the content the key already has, the next version for another one.

    Raises:
        Rejected: `invalid_object_key` when the key belongs to another job.
    """
    current = state.current
    if current is None:
        return [stored]
    if current.job_id != stored.job_id:
        raise Rejected(
            "invalid_object_key",
            f"{stored.object_key} belongs to job {current.job_id}; use a key of your own",
            object_key=stored.object_key,
        )
    return [] if current.sha256 == stored.sha256 else [stored]
