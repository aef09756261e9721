"""Live streams that survive a dropped link: each goes on after the last id it saw."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from services.cli.failures import CliError
from services.cli.gateway import Gateway, ServerEvent

RECONNECT_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""After as many failures in a row as there are pauses, following ends with an error."""
POLL_S = 1.0
_PAGE = 500


def resumed(gateway: Gateway, path: str, last_id: str | None) -> Iterator[ServerEvent]:
    """The events of a stream, reconnecting after the last id, until the server says `done` or stays away."""
    failures = 0
    while True:
        reason: Exception | None = None
        try:
            for event in gateway.events(path, last_id):
                failures, last_id = 0, event.id or last_id
                yield event
                if event.event == "done":
                    return
        except (httpx.TransportError, CliError) as error:
            if isinstance(error, CliError) and error.code != "service_unavailable":
                raise
            reason = error
        if failures == len(RECONNECT_PAUSES_S):
            words = f"Tunewright at {gateway.url} stays away ({reason or 'it ends every stream'})"
            raise CliError(words, code="unreachable") from reason
        time.sleep(RECONNECT_PAUSES_S[failures])
        failures += 1


def log_events(gateway: Gateway, after: int | None, job_id: str | None) -> Iterator[dict[str, Any]]:
    """Events of the log after a position (None: from now on) as they are committed, each once, in order.

    The stream only says that there is news; what is yielded is read by position, so a dropped link loses nothing.
    """
    position = after
    for news in resumed(gateway, "/api/events", None):
        if news.event == "error":
            continue
        if position is None:
            position = _position_of(news)
        while position is not None:
            page = gateway.get("/api/v1/events", after=position, limit=_PAGE)
            for event in page["events"]:
                if job_id is None or event["correlation_id"] == job_id:
                    yield event
            position = int(page["next"])
            if len(page["events"]) < _PAGE:
                break


def await_end(gateway: Gateway, job_id: str) -> dict[str, Any]:
    """The job once it has ended; outages of the gateway are waited out like `resumed` does."""
    failures = 0
    while True:
        try:
            job: dict[str, Any] = gateway.get(f"/api/cloud/jobs/{job_id}")["job"]
            failures = 0
        except CliError as error:
            if error.code not in {"service_unavailable", "unreachable"} or failures == len(RECONNECT_PAUSES_S):
                raise
            time.sleep(RECONNECT_PAUSES_S[failures])
            failures += 1
            continue
        if job["is_terminal"]:
            return job
        time.sleep(POLL_S)


def _position_of(event: ServerEvent) -> int | None:
    if event.id is not None and event.id.isdigit():
        return int(event.id) - 1
    told: dict[str, Any] = json.loads(event.data)
    return told.get("position")
