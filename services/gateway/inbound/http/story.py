"""`/api/v1/jobs`: what the documented contract has no place for: the past, the history, money, numbers, files."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from services.gateway.domain.job_body import JobBody, attempt_body, iso, job_body
from services.gateway.domain.moments import parse_at
from services.gateway.domain.report_text import metric_point
from services.gateway.domain.views import JobView
from services.gateway.inbound.http.jobs import job_id_of
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from shared.contracts.attempt import TrainerCommandName
from shared.contracts.envelope import RecordedEvent

Cursor = Annotated[int, QueryParameter(ge=0)]
PageLimit = Annotated[int, QueryParameter(ge=1, le=10_000)]
FeedLimit = Annotated[int, QueryParameter(ge=1, le=1000)]


class TrainerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a running trainer is asked for."""

    name: TrainerCommandName


def told_job(view: JobView, *, now: datetime) -> dict[str, Any]:
    """A job's state without what other jobs decide (its place in the queue), so that past and present compare."""
    body: dict[str, Any] = msgspec.to_builtins(job_body(view, now=now, queue_position=None))
    del body["queue_position"]
    return {
        **body,
        "position": view.position,
        "deleted": view.job.deleted_at is not None,
        "datasets": msgspec.to_builtins(view.datasets),
        "money": msgspec.to_builtins(view.money),
    }


def told_event(recorded: RecordedEvent) -> dict[str, Any]:
    """An event as it is stored, with its place in the log and its hash in hex."""
    return {
        "global_position": recorded.global_position,
        "event_id": str(recorded.event_id),
        "stream": recorded.stream,
        "stream_version": recorded.stream_version,
        "type": recorded.type,
        "data": msgspec.json.decode(recorded.data),
        "meta": msgspec.to_builtins(recorded.meta),
        "correlation_id": str(recorded.correlation_id),
        "recorded_at": iso(recorded.recorded_at),
        "hash": recorded.hash.hex(),
    }


@get("/jobs/{job_id:str}")
async def get_job(job_id: FromPath[str], parts: Parts, at: FromQuery[str | None] = None) -> dict[str, Any]:
    """A job now, or as it was: `?at=` takes a log position or an ISO 8601 time."""
    if at is None:
        view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
        current: JobBody = await parts.reads.body(view)
        now = parts.reads.now()
        return {"job": told_job(view, now=now), "at": iso(now), "queue_position": current.queue_position}
    moment = await parts.reads.at(job_id_of(job_id), parse_at(at))
    return {"job": told_job(moment.view, now=moment.now), "at": iso(moment.now), "up_to": moment.position}


@get("/jobs/{job_id:str}/events")
async def job_events(job_id: FromPath[str], parts: Parts) -> dict[str, Any]:
    """Everything that ever happened because of this job, of every category, in log order."""
    history = await parts.reads.history(job_id_of(job_id))
    return {"job_id": job_id, "events": [told_event(recorded) for recorded in history]}


@get("/jobs/{job_id:str}/attempts")
async def job_attempts(job_id: FromPath[str], parts: Parts) -> dict[str, Any]:
    """The runs of a job at its providers, oldest first."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    return {"job_id": job_id, "attempts": [attempt_body(attempt) for attempt in view.runs]}


@post("/jobs/{job_id:str}/commands", status_code=OK, guards=[require_json])
async def ask_trainer(
    job_id: FromPath[str], data: JSONBody[TrainerRequest], parts: Parts, principal: Caller
) -> dict[str, Any]:
    """Ask the running trainer to save (`checkpoint_now`) or to show (`sample_now`) what it has.

    It is told with its next report, within 15 s, and does so after the step in progress; its answer is in the log.
    """
    asked = await parts.commands.ask_trainer(job_id_of(job_id), data.name, principal)
    return {
        "job_id": job_id,
        "attempt_id": str(asked.attempt_id),
        "command_id": str(asked.command_id),
        "name": asked.name,
    }


@get("/jobs/{job_id:str}/artifacts")
async def job_artifacts(job_id: FromPath[str], parts: Parts) -> dict[str, Any]:
    """The stored files of a job; `name` is the path below the job's own folder, `url` where to get it."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    stored = sorted(view.artifacts.values(), key=lambda artifact: artifact.object_key)
    listed = [
        {
            **msgspec.to_builtins(artifact),
            "name": artifact.object_key.removeprefix(f"{view.job_id}/"),
            "url": f"/api/cloud/storage/{artifact.bucket}/{artifact.object_key}",
        }
        for artifact in stored
    ]
    return {"job_id": job_id, "artifacts": listed}


@get("/jobs/{job_id:str}/cost")
async def job_cost(job_id: FromPath[str], parts: Parts) -> dict[str, Any]:
    """What was reserved, metered, charged and given back, with every entry of the ledger; micro-dollars."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    return {"job_id": job_id, **await parts.reads.cost(view.job_id)}


@get("/jobs/{job_id:str}/metrics")
async def job_metrics(
    job_id: FromPath[str], parts: Parts, after: Cursor = 0, limit: PageLimit = 10_000
) -> dict[str, Any]:
    """The numbers that the trainer reported, oldest first; `cursor` is the next page's `after`."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    page = await parts.reads.reports(view.job_id, after=after, types=["metrics"], limit=limit)
    return {"job_id": job_id, "metrics": [metric_point(line) for line in page.lines], "cursor": page.cursor}


@get("/jobs/{job_id:str}/reports")
async def job_reports(
    job_id: FromPath[str], parts: Parts, types: FromQuery[str] = "", after: Cursor = 0, limit: PageLimit = 1000
) -> dict[str, Any]:
    """Every line that trainers reported for this job, as sent, in arrival order; `types` is a list with commas."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    wanted = [name for name in types.split(",") if name]
    page = await parts.reads.reports(view.job_id, after=after, types=wanted, limit=limit)
    return {"job_id": job_id, "lines": page.lines, "cursor": page.cursor}


@get("/events")
async def feed(parts: Parts, after: Cursor = 0, limit: FeedLimit = 100) -> dict[str, Any]:
    """A page of the whole log after a position; `next` is the next page's `after`."""
    page = await parts.reads.feed(after=after, limit=limit)
    following = page[-1].global_position if page else after
    return {"events": [told_event(recorded) for recorded in page], "next": following}


ROUTER = Router(
    "/api/v1",
    route_handlers=[
        get_job,
        job_events,
        job_attempts,
        ask_trainer,
        job_artifacts,
        job_cost,
        job_metrics,
        job_reports,
        feed,
    ],
    tags=["History"],
)
