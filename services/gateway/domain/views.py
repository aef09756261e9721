"""One job as everything that happened because of it adds up to: a fold over job, attempt, data and money events.

Each stream writes fields of its own, and each event counts once by its stream version, so any delivery that keeps the
order within each stream gives the same view: live, refolded, or as of a past position.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import cast
from uuid import UUID

import msgspec
from msgspec.structs import replace

from services.gateway.domain.view_attempt import AttemptView, evolve_attempt
from services.gateway.domain.view_job import JobFacts, evolve_job_facts
from services.gateway.domain.view_money import MoneyView, evolve_money
from shared.contracts import catalogue
from shared.contracts.account import AccountEvent, AccountOpened
from shared.contracts.artifact import ArtifactStored, DatasetsPacked, DatasetsRefused
from shared.contracts.attempt import AttemptEvent
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Event, JobEvent, PackedDataset


class ArtifactView(msgspec.Struct, frozen=True, kw_only=True):
    """A stored object of the job; `version` counts how often the same key was stored."""

    name: str
    bucket: str
    object_key: str
    size_bytes: int
    sha256: str
    content_type: str
    attempt_id: UUID | None
    stored_at: datetime
    version: int


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job, folded. `position` is the log position of the newest event in it."""

    job_id: UUID
    position: int = 0
    versions: dict[str, int] = {}
    """Stream -> the highest version folded in (artifact streams keep theirs in `artifacts`)."""
    job: JobFacts = JobFacts()
    attempts: dict[str, AttemptView] = {}
    """Attempt id -> run; texts, because a deterministic encoding sorts by text."""
    datasets: list[PackedDataset] = []
    datasets_refused: str | None = None
    artifacts: dict[str, ArtifactView] = {}
    """`bucket/key` -> the newest object stored there."""
    money: MoneyView = MoneyView()

    @property
    def exists(self) -> bool:
        """The job was accepted; without that nobody may see it."""
        return self.job.submitted_at is not None

    @property
    def visible(self) -> bool:
        """Listed: accepted and not deleted."""
        return self.exists and self.job.deleted_at is None

    @property
    def runs(self) -> list[AttemptView]:
        """The attempts that a provider was to run, oldest first; not those that were cancelled before."""
        asked = [attempt for attempt in self.attempts.values() if attempt.requested_at is not None]
        return sorted(asked, key=lambda attempt: (attempt.number, attempt.attempt_id))

    @property
    def current_attempt(self) -> AttemptView | None:
        """The attempt the job runs as, or ran as last."""
        return self.attempts.get(str(self.job.attempt_id))


def fold_job(job_id: UUID, history: Iterable[RecordedEvent]) -> JobView:
    """The job that a story's events add up to."""
    view = JobView(job_id=job_id)
    for recorded in history:
        view = evolve_job_view(view, recorded, catalogue.decode(recorded))
    return view


def evolve_job_view(view: JobView, recorded: RecordedEvent, event: Event | None) -> JobView:
    """The view after one more event, or the same object when the event says nothing (new), or is of no known type."""
    if event is None or isinstance(event, AccountOpened):
        return view
    if isinstance(event, ArtifactStored):
        return _with_artifact(view, recorded, event)
    if recorded.stream_version <= view.versions.get(recorded.stream, 0):
        return view
    return replace(
        _by_category(view, recorded, event),
        position=max(view.position, recorded.global_position),
        versions={**view.versions, recorded.stream: recorded.stream_version},
    )


def _by_category(view: JobView, recorded: RecordedEvent, event: Event) -> JobView:
    # A category holds the events of one union only: the catalogue made the struct from the stored type.
    match recorded.category:
        case "job":
            return replace(view, job=evolve_job_facts(view.job, cast("JobEvent", event)))
        case "attempt":
            return _with_attempt(view, recorded, cast("AttemptEvent", event))
        case "account":
            return replace(view, money=evolve_money(view.money, cast("AccountEvent", event)))
        case _:
            return _with_datasets(view, event)


def _with_attempt(view: JobView, recorded: RecordedEvent, event: AttemptEvent) -> JobView:
    attempt_id = UUID(recorded.stream.partition("-")[2])
    known = view.attempts.get(str(attempt_id)) or AttemptView(attempt_id=attempt_id, job_id=view.job_id)
    return replace(view, attempts={**view.attempts, str(attempt_id): evolve_attempt(known, event)})


def _with_datasets(view: JobView, event: Event) -> JobView:
    if isinstance(event, DatasetsPacked):
        return replace(view, datasets=event.datasets)
    if isinstance(event, DatasetsRefused):
        return replace(view, datasets_refused=f"{event.dataset_id}: {event.message}")
    return view


def _with_artifact(view: JobView, recorded: RecordedEvent, event: ArtifactStored) -> JobView:
    place = f"{event.bucket}/{event.object_key}"
    known = view.artifacts.get(place)
    if known is not None and recorded.stream_version <= known.version:
        return view
    stored = ArtifactView(
        name=event.name,
        bucket=event.bucket,
        object_key=event.object_key,
        size_bytes=event.size_bytes,
        sha256=event.sha256,
        content_type=event.content_type,
        attempt_id=event.attempt_id,
        stored_at=event.stored_at,
        version=recorded.stream_version,
    )
    position = max(view.position, recorded.global_position)
    return replace(view, position=position, artifacts={**view.artifacts, place: stored})
