"""`/api/cloud/jobs`: the documented contract that existing scripts and the tutorial use."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import MediaType, Response, Router, delete, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from services.gateway.domain.job_body import JobBody, Status, status_of
from services.gateway.domain.refusals import invalid
from services.gateway.domain.report_text import LOG_TYPES, PROGRESS_TYPES, log_tail, progress
from services.gateway.domain.submission import SubmitJobRequest, SubmitJobResponse, idempotency_key
from services.gateway.handlers import cancelled_answer
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from services.gateway.inbound.http.sse import cursor_of, event_stream
from shared.problems import Rejected

LOG_LINES = 10_000
LOG_BYTES = 1024 * 1024
PROGRESS_LINES = 200
CATCH_UP_S = 2.0

IdempotencyHeader = Annotated[str | None, HeaderParameter(name="Idempotency-Key", required=False)]
LastEventId = Annotated[str | None, HeaderParameter(name="Last-Event-ID", required=False)]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]


class JobList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of jobs, newest first; `total` counts all of them."""

    jobs: list[JobBody]
    total: int


class JobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    job: JobBody


class JobLogs(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job's log as text."""

    job_id: str
    logs: str


class InlineProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is: `stage` is the trainer's phase (or the job's status), `progress` a percentage."""

    job_id: str
    stage: str | None
    last_log: str | None
    progress: float | None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    lr: float | None = None
    eta_s: float | None = None


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer to a cancel."""

    success: bool
    job_id: str
    status: Literal["cancelled"]


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer to a delete."""

    success: bool
    job_id: str


class Synced(msgspec.Struct, frozen=True, kw_only=True):
    """How many active jobs were brought up to date."""

    synced: int
    message: str


def job_id_of(text: str) -> UUID:
    """The id in a path; what is no id belongs to no job."""
    try:
        return UUID(text)
    except ValueError:
        raise Rejected("job_not_found", "there is no such job", job_id=text[:64]) from None


@post("/submit", status_code=OK, guards=[require_json])
async def submit(
    data: JSONBody[SubmitJobRequest],
    parts: Parts,
    principal: Caller,
    provider: FromQuery[str] = "local",
    idempotency_header: IdempotencyHeader = None,
) -> SubmitJobResponse:
    """Submit a job. The same idempotency key with the same body gives the same job for 24 hours."""
    key = idempotency_key(data, idempotency_header)
    return await parts.commands.submit(data, provider=provider, key=key, principal=principal)


@post("/sync", status_code=OK)
async def sync(parts: Parts) -> Synced:
    """Bring the view up to what is recorded. Nothing needs to be asked: states arrive as events."""
    await parts.reads.caught_up(CATCH_UP_S)
    return Synced(synced=await parts.reads.jobs.active(), message="every active job is up to date with the log")


@get("/")
async def list_jobs(
    parts: Parts,
    job_type: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    provider: FromQuery[str | None] = None,
    limit: Limit = 50,
    offset: Offset = 0,
    *,
    sync_active: FromQuery[bool] = False,
) -> Response[JobList]:
    """List jobs, newest first."""
    if sync_active:
        await parts.reads.caught_up(CATCH_UP_S)
    content: Any = await parts.reads.page(
        status=_status(status), provider=provider, local=_is_local(job_type), limit=limit, offset=offset
    )
    return Response(content, media_type=MediaType.JSON)


@get("/{job_id:str}")
async def get_job(job_id: FromPath[str], parts: Parts) -> JobAnswer:
    """One job as it is now."""
    view = await parts.reads.view(job_id_of(job_id))
    return JobAnswer(job=await parts.reads.body(view))


@delete("/{job_id:str}", status_code=OK)
async def delete_job(job_id: FromPath[str], parts: Parts, principal: Caller) -> Deleted:
    """Hide a job that has ended; its history stays."""
    await parts.commands.delete(job_id_of(job_id), principal)
    return Deleted(success=True, job_id=job_id)


@post("/{job_id:str}/cancel", status_code=OK)
async def cancel_job(job_id: FromPath[str], parts: Parts, principal: Caller) -> Cancelled:
    """Cancel a job; the answer says that the cancel was accepted, the job says when it is done."""
    wanted = job_id_of(job_id)
    await parts.commands.cancel(wanted, principal)
    return msgspec.convert(cancelled_answer(wanted), Cancelled)


@get("/{job_id:str}/logs")
async def job_logs(job_id: FromPath[str], parts: Parts) -> JobLogs:
    """The log of a job: its last lines, at most one MiB."""
    view = await parts.reads.view(job_id_of(job_id))
    page = await parts.reads.reports(view.job_id, types=LOG_TYPES, limit=LOG_LINES, tail=True)
    return JobLogs(job_id=str(view.job_id), logs=log_tail(page.lines, LOG_BYTES))


@get("/{job_id:str}/logs/stream", media_type="text/event-stream")
async def job_log_stream(job_id: FromPath[str], parts: Parts, last_event_id: LastEventId = None) -> Stream:
    """The log as it grows: `data: <line>`, at the end `event: done`. Last-Event-ID goes on where it broke off."""
    view = await parts.reads.view(job_id_of(job_id))
    frames = await parts.log_streams.open(view.job_id, after=cursor_of(last_event_id) or 0)
    return event_stream(frames)


@get("/{job_id:str}/inline-progress")
async def inline_progress(job_id: FromPath[str], parts: Parts) -> InlineProgress:
    """The newest stage, log line and numbers of a job."""
    view = await parts.reads.view(job_id_of(job_id))
    page = await parts.reads.reports(view.job_id, types=PROGRESS_TYPES, limit=PROGRESS_LINES, tail=True)
    found: dict[str, Any] = progress(page.lines)
    status = status_of(view)
    if found["stage"] is None or view.job.terminal:
        found["stage"] = status
    return InlineProgress(job_id=str(view.job_id), **{name: found.get(name) for name in _PROGRESS_FIELDS})


_PROGRESS_FIELDS = ("stage", "last_log", "progress", "step", "total_steps", "loss", "lr", "eta_s")


def _status(word: str | None) -> Status | None:
    if word is None:
        return None
    try:
        return msgspec.convert(word, Status)
    except msgspec.ValidationError:
        known = "pending, uploading, queued, running, completed, failed, cancelled"
        raise invalid("status", f"{word!r} is not a status", f"Use one of {known}.") from None


def _is_local(job_type: str | None) -> bool | None:
    if job_type is None:
        return None
    if job_type not in {"local", "cloud"}:
        raise invalid("job_type", f"{job_type!r} is not a job type", "Use local or cloud.")
    return job_type == "local"


ROUTER = Router(
    "/api/cloud/jobs",
    route_handlers=[
        submit,
        sync,
        list_jobs,
        get_job,
        delete_job,
        cancel_job,
        job_logs,
        job_log_stream,
        inline_progress,
    ],
    tags=["Jobs"],
)
