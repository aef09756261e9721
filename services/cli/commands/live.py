"""logs and events: what a run says, and what is recorded of it, once or as it happens."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli.exit_codes import DONE, ERROR, OF_STATUS
from services.cli.following import log_events, resumed
from services.cli.options import Follow, Session, Watch

_COLUMNS = ("POSITION", "TIME", "EVENT", "STREAM", "WHAT")
_PAGE = 1000
_SAID = ("reason", "message", "detail", "kind", "status", "provider")
"""The members of an event that say most in one line."""


def logs(
    job: str,
    *,
    follow: Follow = False,
    tail: Annotated[int | None, Parameter(name=["--tail", "-n"])] = None,
    session: Session,
) -> int:
    """Print the log of a job; with -f as it grows, and then the exit code is the job's.

    :param job: id of the job, or the beginning of it.
    :param tail: only the last lines, this many.
    """
    job_id = session.job_id(job)
    if follow:
        status = follow_log(session, job_id, as_json=session.terminal.as_json)
        session.terminal.say(f"job {job_id} {status}")
        return OF_STATUS.get(status, ERROR)
    answer = session.gateway.get(f"/api/cloud/jobs/{job_id}/logs")
    lines: list[str] = answer["logs"].splitlines()
    shown = lines if tail is None else lines[max(0, len(lines) - tail) :]
    if session.terminal.as_json:
        session.terminal.json({"job_id": job_id, "lines": shown})
        return DONE
    for line in shown:
        session.terminal.line(line)
    return DONE


def events(
    job: str | None = None,
    *,
    after: int | None = None,
    watch: Watch = False,
    limit: Annotated[int | None, Parameter(name=["--limit", "-n"])] = None,
    session: Session,
) -> int:
    """Print the events of a job, or of everything, in log order.

    :param job: id of the job, or the beginning of it; without it the whole log is read.
    :param after: only events after this position of the log.
    :param limit: stop after this many.
    """
    job_id = None if job is None else session.job_id(job)
    if watch:
        return _watch_events(session, job_id, after, limit)
    found = _recorded(session, job_id, after or 0, limit)
    if session.terminal.as_json:
        session.terminal.json({"events": found})
    else:
        session.terminal.rows(_COLUMNS, [_event_row(event) for event in found])
    return DONE


def follow_log(session: Session, job_id: str, *, as_json: bool = False, to_stderr: bool = False) -> str:
    """Prints log lines until the job has ended; answers the last status. A dropped link loses and doubles nothing."""
    for event in resumed(session.gateway, f"/api/cloud/jobs/{job_id}/logs/stream", None):
        if event.event == "done":
            return event.data
        if event.event != "message":
            continue
        if as_json:
            session.terminal.json({"cursor": event.id, "line": event.data})
        elif to_stderr:
            session.terminal.say(event.data)
        else:
            session.terminal.line(event.data)
    return "unknown"


def register(app: App) -> None:
    """Adds these commands."""
    app.command(logs)
    app.command(events)


def _watch_events(session: Session, job_id: str | None, after: int | None, limit: int | None) -> int:
    for count, event in enumerate(log_events(session.gateway, after, job_id), start=1):
        if session.terminal.as_json:
            session.terminal.json(event)
        else:
            session.terminal.line("\t".join(_event_row(event)))
        if limit is not None and count >= limit:
            break
    return DONE


def _recorded(session: Session, job_id: str | None, after: int, limit: int | None) -> list[dict[str, Any]]:
    if job_id is not None:
        told: list[dict[str, Any]] = session.gateway.get(f"/api/v1/jobs/{job_id}/events")["events"]
        return [event for event in told if event["global_position"] > after][:limit]
    found: list[dict[str, Any]] = []
    while limit is None or len(found) < limit:
        wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = session.gateway.get("/api/v1/events", after=after, limit=wanted)
        found += page["events"]
        after = page["next"]
        if len(page["events"]) < wanted:
            break
    return found


def _event_row(event: dict[str, Any]) -> Sequence[str]:
    return (
        str(event["global_position"]),
        str(event["recorded_at"]),
        str(event["type"]),
        str(event["stream"]),
        _said(event["data"]),
    )


def _said(data: dict[str, Any]) -> str:
    parts = [f"{name}={json.dumps(data[name], ensure_ascii=False)}" for name in _SAID if data.get(name) is not None]
    return " ".join(parts)[:200]
