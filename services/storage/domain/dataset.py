"""The `dataset-<job id>` decider: what came of packing a job's datasets is recorded once."""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from shared.contracts.artifact import DatasetsPacked, DatasetsRefused
from shared.contracts.job import Event

PackResult = DatasetsPacked | DatasetsRefused


class DatasetState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one job's datasets; `result` None while they are not packed."""

    result: PackResult | None = None


INITIAL = DatasetState()


def stream_of(job_id: UUID) -> str:
    """The stream `dataset-<job id>`."""
    return f"dataset-{job_id}"


def evolve(state: DatasetState, event: Event) -> DatasetState:
    """The first result stays."""
    if state.result is None and isinstance(event, PackResult):
        return DatasetState(result=event)
    return state


def decide(state: DatasetState, result: PackResult) -> Sequence[Event]:
    """Records the first result; a second worker that packed the same job adds nothing."""
    return [] if state.result is not None else [result]
