"""Jobs as clients see them, encoded: a job at rest is encoded once, for as long as nothing happens to it."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from services.gateway.domain.job_body import JobBody, is_at_rest, job_body
from services.gateway.domain.views import JobView
from services.gateway.projections.jobs import ID_BYTES, JobsView, stamp_of
from services.gateway.projections.waiting import WaitingPlaces
from shared.clock import Clock

KEPT_BODIES = 4096
"""Some 2 KiB each."""
_NO_PLACE = b"null}"
_NO_PLACES: dict[bytes, int] = {}


class _Encoded(msgspec.Struct, frozen=True, gc=False):
    """A body up to the value of its last member, the place in the queue. `waits`: that value is not known yet."""

    start: bytes
    waits: bool
    end: bytes


class JobBodies:
    """Gives bodies with the places of those that wait, as structs or as JSON."""

    def __init__(self, jobs: JobsView, clock: Clock, seen: Callable[[], int | None]) -> None:
        self._jobs = jobs
        self._clock = clock
        self._places = WaitingPlaces(jobs, seen)
        self._kept: OrderedDict[bytes, _Encoded | JobView] = OrderedDict()
        """By stamp: what was encoded of a job at rest, and of one that runs the view, whose body changes with time."""

    async def of(self, views: Sequence[JobView]) -> list[JobBody]:
        """The jobs as they are now."""
        waiting = [view.job_id.bytes for view in views if _waits(view)]
        places = await self._places.of(waiting) if waiting else _NO_PLACES
        now = self._clock()
        return [job_body(view, now=now, queue_position=places.get(view.job_id.bytes)) for view in views]

    async def encoded(self, stamps: Sequence[bytes]) -> list[bytes]:
        """The JSON of the jobs with these stamps, or newer, in their order; one that is gone meanwhile is left out."""
        known = await self._known(stamps)
        now = self._clock()
        bodies = {job_id: _encode(body, now) if isinstance(body, JobView) else body for job_id, body in known.items()}
        waiting = [job_id for job_id, body in bodies.items() if body.waits]
        places = await self._places.of(waiting) if waiting else _NO_PLACES
        return [
            body.start + (b"%d}" % places[job_id] if body.waits and job_id in places else body.end)
            for job_id, body in bodies.items()
        ]

    async def _known(self, stamps: Sequence[bytes]) -> dict[bytes, _Encoded | JobView]:
        """What is kept, or read and kept now, by the bytes of the jobs' ids."""
        found = {stamp[:ID_BYTES]: self._kept.get(stamp) for stamp in stamps}
        missing = [UUID(bytes=job_id) for job_id, body in found.items() if body is None]
        for view in await self._jobs.some(missing) if missing else ():
            found[view.job_id.bytes] = self._keep(view)
        return {job_id: body for job_id, body in found.items() if body is not None}

    def _keep(self, view: JobView) -> _Encoded | JobView:
        body = _encode(view, self._clock()) if is_at_rest(view) else view
        self._kept[stamp_of(view)] = body
        if len(self._kept) > KEPT_BODIES:
            self._kept.popitem(last=False)
        return body


def _encode(view: JobView, now: datetime) -> _Encoded:
    whole = msgspec.json.encode(job_body(view, now=now, queue_position=None))
    waits = _waits(view) and whole.endswith(_NO_PLACE)
    cut = len(whole) - len(_NO_PLACE) if waits else len(whole)
    return _Encoded(whole[:cut], waits, whole[cut:])


def _waits(view: JobView) -> bool:
    return view.job.phase in {"unknown", "submitted", "queued"}
