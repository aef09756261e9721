"""What workers and their administrators send and are sent, in the documented shapes; a worker's token."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

import msgspec

from services.gateway.domain.refusals import invalid
from services.gateway.domain.tokens import token_digest
from shared.contracts.worker import ReportedStatus, WorkerItem, WorkerStatus, WorkerType
from shared.problems import Rejected

_TOKEN = re.compile(r"tww_([0-9a-f]{32})_([A-Za-z0-9_-]{32,64})")
MAX_NAME_CHARS = 100
MAX_LABELS = 32
MAX_LABEL_CHARS = 128
MAX_GPU_INFO_BYTES = 16 * 1024


class WorkerRegistrationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself. Members that are not known are passed over: workers are upgraded one by one.

    `current_job_id` is the job whose run it has; `current_attempt_id` says which run of that job.
    """

    name: str
    gpu_info: dict[str, Any]
    persistent: bool = False
    provider: str | None = None
    labels: dict[str, str] = {}
    current_job_id: str | None = None
    current_attempt_id: str | None = None


class WorkerRegistrationResponse(msgspec.Struct, frozen=True, kw_only=True):
    """`resume_job` is the run that it has and keeps; `abandon_job` the job whose run it has and must end."""

    worker_id: str
    sse_url: str
    resume_job: dict[str, Any] | None = None
    abandon_job: str | None = None


class HeartbeatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life, every 30 seconds."""

    worker_id: str
    status: str
    current_job_id: str | None = None
    current_attempt_id: str | None = None
    job_progress: dict[str, Any] | None = None
    gpu_utilization: float | None = None
    vram_used_gb: float | None = None


class HeartbeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`abandon_job` is the job whose run it has and must end."""

    success: Literal[True] = True
    abandon_job: str | None = None


class JobStatusUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the run: starting, running, completed, failed or cancelled.

    `exit_code` is the trainer's, `error` its last words, `ended_s_ago` how long ago it ended.
    """

    status: str
    progress: dict[str, Any] | None = None
    error: str | None = None
    attempt_id: str | None = None
    exit_code: int | None = None
    ended_s_ago: float = 0.0


class CreateWorkerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker to be made. Its labels win over those that the machine says of itself."""

    name: str
    worker_type: WorkerType = "persistent"
    labels: dict[str, str] = {}
    price_usd_per_hour: float = 0.0


class WorkerToken(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's token, shown this once, and the line to type on its machine."""

    worker_id: str
    token: str
    connection_command: str


class WorkerListItem(msgspec.Struct, frozen=True, kw_only=True):
    """One worker."""

    worker_id: str
    name: str
    worker_type: WorkerType
    status: WorkerStatus
    gpu_info: dict[str, Any]
    provider: str | None
    labels: dict[str, str]
    current_job_id: str | None
    last_heartbeat: datetime | None
    connected_at: datetime | None
    created_at: datetime
    connected: bool
    uptime_seconds: float | None
    price_usd_per_hour: float
    last_report: dict[str, Any] | None


class WorkerListResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker, oldest first."""

    workers: list[WorkerListItem]
    total: int


class WorkerDone(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer to what an administrator does to a worker."""

    success: Literal[True] = True
    worker_id: str
    status: str | None = None


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """It was done."""

    success: Literal[True] = True


class KnownWorker(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token says it is; whether it is, its owner decides by the digest."""

    worker_id: UUID
    token_sha256: str


def make_token(worker_id: UUID, secret: str) -> str:
    """`tww_<worker>_<secret>`: it names its worker, so that it is checked against that worker's stream alone."""
    return f"tww_{worker_id.hex}_{secret}"


def known_worker(token: str | None) -> KnownWorker:
    """Who sends this token. Raises `missing_token` or `invalid_token`."""
    if not token:
        raise Rejected("missing_token", "send the worker's token as X-Worker-Token")
    found = _TOKEN.fullmatch(token.strip())
    if found is None:
        raise Rejected("invalid_token", "this is no worker's present token")
    return KnownWorker(worker_id=UUID(hex=found[1]), token_sha256=token_digest(token.strip()))


def require_same(known: KnownWorker, worker_id: str) -> None:
    """Raises `validation_error` when a request names another worker than its token does."""
    if worker_id not in {str(known.worker_id), known.worker_id.hex}:
        raise invalid("worker_id", "it is not the worker that the token belongs to", "Send the id of your own worker.")


def check_registration(name: str, labels: Mapping[str, str], gpu_info: Mapping[str, Any]) -> None:
    """Raises `validation_error` for what no worker needs to say at such length."""
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise invalid("name", f"a name has 1 to {MAX_NAME_CHARS} printable characters", "Give a shorter name.")
    if len(labels) > MAX_LABELS or any(not key or len(key) + len(labels[key]) > MAX_LABEL_CHARS for key in labels):
        message = f"at most {MAX_LABELS} labels, each of 1 to {MAX_LABEL_CHARS} characters with its value"
        raise invalid("labels", message, "Give fewer or shorter labels.")
    if len(msgspec.json.encode(gpu_info)) > MAX_GPU_INFO_BYTES:
        raise invalid("gpu_info", f"more than {MAX_GPU_INFO_BYTES} bytes", "Name, count and vram_gb are enough.")


def reported_status(word: str) -> ReportedStatus:
    """The word as we know it. Raises `validation_error`."""
    for known in get_args(ReportedStatus):
        if known == word:
            return known
    raise invalid("status", f"{word!r} is not a status", f"Use one of {', '.join(get_args(ReportedStatus))}.")


def listed_status(word: str | None) -> WorkerStatus | None:
    """The filter as we know it. Raises `validation_error`."""
    if word is None:
        return None
    for known in get_args(WorkerStatus):
        if known == word:
            return known
    raise invalid("status_filter", f"{word!r} is not a status", f"Use one of {', '.join(get_args(WorkerStatus))}.")


def id_of(text: str | None, field: str) -> UUID | None:
    """An id that may be missing. Raises `validation_error`."""
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise invalid(field, f"{text[:64]!r} is not an id", "Send it as it was given to you.") from None


def worker_id_of(text: str) -> UUID:
    """The id in a path. Raises `worker_not_found`."""
    try:
        return UUID(text)
    except ValueError:
        raise Rejected("worker_not_found", "there is no such worker", worker_id=text[:64]) from None


def list_item(item: WorkerItem) -> WorkerListItem:
    """A worker as clients see it."""
    return WorkerListItem(**msgspec.structs.asdict(item))


def connection_command(origin: str, token: str) -> str:
    """Starts the worker where it is pasted; the token is in no process list."""
    file = "tunewright-worker.token"
    return f"(umask 077 && printf %s '{token}' > {file}) && tunewright worker --server {origin} --token-file {file}"
