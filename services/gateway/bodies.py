"""Jobs as clients see them, encoded: a job at rest is encoded once, for as long as nothing happens to it."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from services.gateway.domain.job_body import JobBody, is_at_rest, job_body
from services.gateway.domain.views import JobView
from services.gateway.projections.jobs import JobsView, Listed
from services.gateway.projections.waiting import WaitingPlaces
from shared.clock import Clock

KEPT_BODIES = 4096
"""Some 2 KiB each."""
_NO_PLACE = b"null}"


class _Kept(msgspec.Struct, frozen=True):
    """A body up to the value of its last member, the place in the queue. `waits`: that value is not known yet."""

    position: int
    start: bytes
    waits: bool
    end: bytes


class JobBodies:
    """Gives bodies with the places of those that wait, as structs or as JSON."""

    def __init__(self, jobs: JobsView, clock: Clock, seen: Callable[[], int | None]) -> None:
        self._jobs = jobs
        self._clock = clock
        self._places = WaitingPlaces(jobs, seen)
        self._kept: OrderedDict[UUID, _Kept] = OrderedDict()

    async def of(self, views: Sequence[JobView]) -> list[JobBody]:
        """The jobs as they are now."""
        waiting = [view.job_id for view in views if _waits(view)]
        places = await self._places.of(waiting) if waiting else {}
        now = self._clock()
        return [job_body(view, now=now, queue_position=places.get(view.job_id)) for view in views]

    async def encoded(self, page: Sequence[Listed]) -> list[bytes]:
        """The JSON of listed jobs in the page's order; a job that is gone meanwhile is left out."""
        kept = await self._kept_or_made(page)
        waiting = [job_id for job_id, body in kept.items() if body.waits]
        places = await self._places.of(waiting) if waiting else {}
        return [
            body.start + (b"%d}" % places[job_id] if body.waits and job_id in places else body.end)
            for job_id, body in kept.items()
        ]

    async def _kept_or_made(self, page: Sequence[Listed]) -> dict[UUID, _Kept]:
        found = {listed.job_id: self._look_up(listed) for listed in page}
        missing = [job_id for job_id, body in found.items() if body is None]
        now = self._clock()
        for view in await self._jobs.some(missing) if missing else ():
            found[view.job_id] = self._make(view, now)
        return {job_id: body for job_id, body in found.items() if body is not None}

    def _look_up(self, listed: Listed) -> _Kept | None:
        body = self._kept.get(listed.job_id)
        if body is None or body.position != listed.position:
            return None
        self._kept.move_to_end(listed.job_id)
        return body

    def _make(self, view: JobView, now: datetime) -> _Kept:
        whole = msgspec.json.encode(job_body(view, now=now, queue_position=None))
        waits = _waits(view) and whole.endswith(_NO_PLACE)
        cut = len(whole) - len(_NO_PLACE) if waits else len(whole)
        body = _Kept(view.position, whole[:cut], waits, whole[cut:])
        if is_at_rest(view):
            self._kept[view.job_id] = body
            self._kept.move_to_end(view.job_id)
            if len(self._kept) > KEPT_BODIES:
                self._kept.popitem(last=False)
        return body


def _waits(view: JobView) -> bool:
    return view.job.phase in {"unknown", "submitted", "queued"}
