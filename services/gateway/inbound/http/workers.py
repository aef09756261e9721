"""`/api/workers`: own machines that pull jobs. `/api/admin/workers`: who they are."""

from typing import Annotated, Any

from litestar import Request, Router, delete, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody
from litestar.response import Stream

from services.gateway.domain.worker_bodies import (
    CreateWorkerRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    JobStatusUpdate,
    Success,
    WorkerDone,
    WorkerListResponse,
    WorkerRegistrationRequest,
    WorkerRegistrationResponse,
    WorkerToken,
    connection_command,
    known_worker,
    list_item,
    listed_status,
    require_same,
    worker_id_of,
)
from services.gateway.inbound.http.jobs import job_id_of
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from services.gateway.inbound.http.sse import event_stream

Token = Annotated[str | None, HeaderParameter(name="X-Worker-Token", required=False)]
MAX_BODY_BYTES = 256 * 1024


@post("/register", status_code=OK, guards=[require_json])
async def register_worker(
    data: JSONBody[WorkerRegistrationRequest], parts: Parts, principal: Caller, token: Token = None
) -> WorkerRegistrationResponse:
    """Say what this machine is, and which run it has; done again whenever the stream was lost."""
    known = known_worker(token)
    answer = await parts.workers.register(known, data, principal.source_ip)
    return WorkerRegistrationResponse(
        worker_id=str(known.worker_id),
        sse_url=f"/api/workers/stream?worker_id={known.worker_id}",
        resume_job=answer["resume_job"],
        abandon_job=answer["abandon_job"],
    )


@get("/stream", media_type="text/event-stream")
async def worker_stream(worker_id: FromQuery[str], parts: Parts, token: Token = None) -> Stream:
    """What is to be done: `job_submit`, `job_cancel`, `drain`, `shutdown`, and `ping` every 30 seconds.

    A stream that is opened anew tells everything that still holds.
    """
    known = known_worker(token)
    require_same(known, worker_id)
    return event_stream(await parts.worker_streams.open(known))


@post("/heartbeat", status_code=OK, guards=[require_json])
async def worker_heartbeat(
    data: JSONBody[HeartbeatRequest], parts: Parts, principal: Caller, token: Token = None
) -> HeartbeatAnswer:
    """Every 30 seconds; after 120 seconds of silence a worker is offline."""
    known = known_worker(token)
    require_same(known, data.worker_id)
    return HeartbeatAnswer(abandon_job=await parts.workers.beat(known, data, principal.source_ip))


@post("/job/{job_id:str}/status", status_code=OK, guards=[require_json])
async def report_worker_job(
    job_id: FromPath[str], data: JSONBody[JobStatusUpdate], parts: Parts, principal: Caller, token: Token = None
) -> Success:
    """What became of a run. A repeat is harmless."""
    known = known_worker(token)
    await parts.workers.report(known, job_id_of(job_id), data, principal.source_ip)
    return Success()


@get("/")
async def list_workers(
    parts: Parts, principal: Caller, status_filter: FromQuery[str | None] = None
) -> WorkerListResponse:
    """Every worker, oldest first."""
    found = await parts.workers.read(listed_status(status_filter), principal)
    return WorkerListResponse(workers=[list_item(item) for item in found], total=len(found))


@post("/", status_code=OK, guards=[require_json])
async def create_worker(
    data: JSONBody[CreateWorkerRequest], request: Request[Any, Any, Any], parts: Parts, principal: Caller
) -> WorkerToken:
    """Make a worker; its token is shown this once."""
    worker_id, token = await parts.workers.create(data, principal)
    return _token(request, str(worker_id), token)


@delete("/{worker_id:str}", status_code=OK)
async def remove_worker(
    worker_id: FromPath[str], parts: Parts, principal: Caller, *, force: FromQuery[bool] = False
) -> WorkerDone:
    """Forget a worker; with `force` even one that has a run, which is given up."""
    await parts.workers.remove(worker_id_of(worker_id), principal, force=force)
    return WorkerDone(worker_id=worker_id)


@post("/{worker_id:str}/drain", status_code=OK)
async def drain_worker(worker_id: FromPath[str], parts: Parts, principal: Caller) -> WorkerDone:
    """Let it finish what it has, give it nothing more, and then tell it to end."""
    await parts.workers.drain(worker_id_of(worker_id), principal)
    return WorkerDone(worker_id=worker_id, status="draining")


@post("/{worker_id:str}/resume", status_code=OK)
async def resume_worker(worker_id: FromPath[str], parts: Parts, principal: Caller) -> WorkerDone:
    """Give jobs to a drained worker again."""
    await parts.workers.resume(worker_id_of(worker_id), principal)
    return WorkerDone(worker_id=worker_id)


@post("/{worker_id:str}/token", status_code=OK)
async def rotate_worker_token(
    worker_id: FromPath[str], request: Request[Any, Any, Any], parts: Parts, principal: Caller
) -> WorkerToken:
    """Give it a new token; the old one is refused at once, a run that it has goes on."""
    wanted = worker_id_of(worker_id)
    return _token(request, str(wanted), await parts.workers.rotate(wanted, principal))


def _token(request: Request[Any, Any, Any], worker_id: str, token: str) -> WorkerToken:
    origin = str(request.base_url).rstrip("/")
    return WorkerToken(worker_id=worker_id, token=token, connection_command=connection_command(origin, token))


ROUTER = Router(
    "/api/workers",
    route_handlers=[register_worker, worker_stream, worker_heartbeat, report_worker_job],
    request_max_body_size=MAX_BODY_BYTES,
    tags=["Workers"],
)
ADMIN_ROUTER = Router(
    "/api/admin/workers",
    route_handlers=[list_workers, create_worker, remove_worker, drain_worker, resume_worker, rotate_worker_token],
    tags=["Workers"],
)
