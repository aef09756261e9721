"""ps, describe, cancel, delete: jobs as they are."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.live import Live

from services.cli.exit_codes import DONE
from services.cli.options import Session, Watch
from services.cli.terminal import ago, dollars, duration, size, table

SHORT_ID = 13
"""The time part of an id, which tells jobs apart unless two came in the same millisecond."""
WATCH_S = 2.0
_COLUMNS = ("JOB", "STATUS", "NAME", "PROVIDER", "COST", "CREATED", "WHY")


def ps(
    *,
    status: str | None = None,
    provider: str | None = None,
    limit: Annotated[int, Parameter(name=["--limit", "-n"])] = 50,
    watch: Watch = False,
    session: Session,
) -> int:
    """List jobs, newest first, and why they wait or failed.

    :param status: pending, uploading, queued, running, completed, failed or cancelled.
    :param provider: only jobs of this provider.
    :param limit: how many (at most 500).
    """
    query = {"status": status, "provider": provider, "limit": limit}

    def fetch() -> dict[str, Any]:
        return session.gateway.get("/api/cloud/jobs", **query)

    if watch:
        return _watch(session, fetch)
    answer = fetch()
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    session.terminal.rows(_COLUMNS, _job_rows(answer["jobs"], whole_ids=session.terminal.is_pipe))
    hidden = answer["total"] - len(answer["jobs"])
    if hidden > 0:
        session.terminal.say(f"{hidden} more; --limit shows more of them")
    return DONE


def describe(job: str, *, at: str | None = None, session: Session) -> int:
    """Show one job: its state and the reason for it, attempts, money, files.

    :param job: id of the job, or the beginning of it.
    :param at: as it was then: a log position such as 1234, or a time such as 2026-11-22T10:00:00Z.
    """
    job_id = session.job_id(job)
    answer = session.gateway.get(f"/api/v1/jobs/{job_id}", at=at)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    session.terminal.facts(_facts(answer["job"], answer.get("queue_position")))
    attempts: list[dict[str, Any]] = answer["job"]["metadata"].get("attempts") or []
    if attempts and not session.terminal.is_pipe:
        session.terminal.say("")
        session.terminal.rows(("ATTEMPT", "STATE", "PROVIDER", "DEVICE", "BILLED", "REASON"), _attempt_rows(attempts))
    return DONE


def cancel(job: str, *, session: Session) -> int:
    """Cancel a job that has not ended. Repeating it is harmless.

    :param job: id of the job, or the beginning of it.
    """
    job_id = session.job_id(job)
    answer = session.gateway.post(f"/api/cloud/jobs/{job_id}/cancel")
    if session.terminal.as_json:
        session.terminal.json(answer)
    session.terminal.say(f"job {job_id} is being cancelled")
    return DONE


def checkpoint(job: str, *, session: Session) -> int:
    """Ask the running trainer of a job to save a checkpoint now. The job's log says when it has.

    :param job: id of the job, or the beginning of it.
    """
    return _ask(session, job, "checkpoint_now")


def sample(job: str, *, session: Session) -> int:
    """Ask the running trainer of a job to show now what the model can do. The job's log says when it has.

    :param job: id of the job, or the beginning of it.
    """
    return _ask(session, job, "sample_now")


def delete(job: str, *, session: Session) -> int:
    """Hide a job that has ended. Its history stays in the log.

    :param job: id of the job, or the beginning of it.
    """
    job_id = session.job_id(job)
    answer = session.gateway.delete(f"/api/cloud/jobs/{job_id}")
    if session.terminal.as_json:
        session.terminal.json(answer)
    session.terminal.say(f"job {job_id} is deleted; `tunewright events {job_id}` still tells its history")
    return DONE


def register(app: App) -> None:
    """Adds these commands."""
    for command in (ps, describe, cancel, checkpoint, sample, delete):
        app.command(command)


def _ask(session: Session, job: str, name: str) -> int:
    job_id = session.job_id(job)
    answer = session.gateway.post(f"/api/v1/jobs/{job_id}/commands", {"name": name})
    if session.terminal.as_json:
        session.terminal.json(answer)
    session.terminal.say(
        f"the trainer of job {job_id} is told with its next report; `tunewright logs {job_id}` has its answer"
    )
    return DONE


def _watch(session: Session, fetch: Any) -> int:
    """Shows the list anew whenever it changes, until Ctrl-C; in a pipe, one JSON document or block per change."""
    terminal = session.terminal
    if terminal.as_json or terminal.is_pipe:
        before: object = None
        while True:
            answer = fetch()
            jobs = [(job["job_id"], job["status"], _why(job)) for job in answer["jobs"]]
            if jobs != before and terminal.as_json:
                terminal.json(answer)
            elif jobs != before:
                terminal.rows((), _job_rows(answer["jobs"], whole_ids=True))
            before = jobs
            time.sleep(WATCH_S)
    with Live(console=terminal.out, screen=False, auto_refresh=False) as live:
        while True:
            live.update(table(_COLUMNS, _job_rows(fetch()["jobs"], whole_ids=False)), refresh=True)
            time.sleep(WATCH_S)


def _job_rows(jobs: Sequence[dict[str, Any]], *, whole_ids: bool) -> list[Sequence[str]]:
    shown = {str(job["job_id"])[:SHORT_ID] for job in jobs}
    width = None if whole_ids or len(shown) < len(jobs) else SHORT_ID
    return [
        (
            str(job["job_id"])[:width],
            str(job["status"]),
            str(job["metadata"].get("tracker_run_name") or job.get("config_name") or ""),
            str(job["provider"]),
            dollars(job.get("cost_usd")),
            str(job["created_at"]) if whole_ids else ago(job["created_at"]),
            _why(job),
        )
        for job in jobs
    ]


def _why(job: dict[str, Any]) -> str:
    """The reason for where the job is, in the words of the event that decided it."""
    metadata = job["metadata"]
    if job.get("error_message"):
        failure: dict[str, Any] = metadata.get("failure") or {}
        return f"{failure['kind']}: {job['error_message']}" if failure else str(job["error_message"])
    if wait := metadata.get("wait"):
        return str(wait.get("detail") or wait.get("reason") or "")
    if job["status"] in {"pending", "uploading"}:
        return "datasets are being packed" if job["status"] == "uploading" else "waiting for funds"
    if job["status"] == "completed" and (problems := metadata.get("delivery_problems")):
        return "; ".join(str(problem) for problem in problems)
    return ""


def _delivered(metadata: dict[str, Any]) -> list[str]:
    """Where the results are, besides our storage."""
    deliveries: list[dict[str, Any]] = metadata.get("deliveries") or []
    return [
        str(delivery.get("url") or delivery["target"])
        for delivery in deliveries
        if delivery["status"] == "delivered" and delivery["what"] == "results"
    ]


def _facts(job: dict[str, Any], queue_position: int | None) -> dict[str, str | None]:
    metadata: dict[str, Any] = job["metadata"]
    failure: dict[str, Any] = metadata.get("failure") or {}
    artifacts: dict[str, Any] = metadata.get("artifacts") or {}
    return {
        "job": str(job["job_id"]),
        "status": str(job["status"]),
        "phase": metadata.get("phase"),
        "why": _why(job) or metadata.get("dispatch_reason"),
        "last failure": _last_failure(job["status"], failure),
        "advice": failure.get("advice"),
        "place in queue": None if queue_position is None else str(queue_position),
        "name": metadata.get("tracker_run_name") or job.get("config_name"),
        "provider": job["provider"],
        "created": job["created_at"],
        "started": job.get("started_at"),
        "ended": job.get("completed_at"),
        "duration": duration(job.get("duration_seconds")) or None,
        "attempt": f"{metadata.get('attempt') or 0} of {metadata.get('max_attempts') or '?'}",
        "checkpoint": _text(metadata.get("checkpoint_step"), "step {}"),
        "steps": _text(metadata.get("steps"), "{}"),
        "final loss": _text(metadata.get("final_loss"), "{:.4g}"),
        "cost": dollars(job.get("cost_usd")) or None,
        "artifacts": f"{artifacts['count']} files, {size(artifacts['size_bytes'])}" if artifacts.get("count") else None,
        "missing": ", ".join(metadata.get("missing") or []) or None,
        "delivered": ", ".join(_delivered(metadata)) or None,
        "not delivered": "; ".join(metadata.get("delivery_problems") or []) or None,
        "model": job.get("output_url"),
    }


def _attempt_rows(attempts: Sequence[dict[str, Any]]) -> list[Sequence[str]]:
    return [
        (
            str(attempt["number"]),
            str(attempt["state"]),
            str(attempt["provider"]),
            str(attempt.get("device") or attempt.get("hardware") or ""),
            duration(attempt.get("billed_seconds")),
            _failure_of(attempt),
        )
        for attempt in attempts
    ]


def _failure_of(attempt: dict[str, Any]) -> str:
    failure: dict[str, Any] = attempt.get("failure") or {}
    told = [f"{failure['kind']}: {failure['message']}"] if failure else []
    return "; ".join([*told, *(attempt.get("gpu_faults") or [])])


def _last_failure(status: str, failure: dict[str, Any]) -> str | None:
    """Why the attempt before failed, of a job that goes on; one that has failed says it as `why`."""
    return f"{failure['kind']}: {failure['message']}" if failure and status != "failed" else None


def _text(value: object, pattern: str) -> str | None:
    return None if value is None else pattern.format(value)
