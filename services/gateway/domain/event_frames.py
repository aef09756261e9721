"""What a live client is told of one event: the documented event names and bodies of `/api/events`."""

from typing import Any
from uuid import UUID

import msgspec

from services.gateway.domain.job_body import Status, iso
from shared.contracts.envelope import RecordedEvent

_NAMES = {
    "job": "cloud_job_update",
    "attempt": "training.status",
    "dataset": "lifecycle.stage",
    "worker": "worker.status",
}
_LARGE = frozenset({"config", "dataloader"})


def update_name(recorded: RecordedEvent) -> str:
    """The documented name for events of this category."""
    return _NAMES.get(recorded.category, "notification")


def bare_body(recorded: RecordedEvent) -> dict[str, Any]:
    """The members that need nothing but the envelope."""
    return {
        "type": update_name(recorded),
        "job_id": None if recorded.category == "worker" else str(recorded.correlation_id),
        "event_type": recorded.type,
        "status": None,
        "updates": {},
        "payload": {},
        "external_job_id": None,
        "position": recorded.global_position,
        "stream": recorded.stream,
        "recorded_at": iso(recorded.recorded_at),
    }


def update_body(recorded: RecordedEvent, status: Status | None) -> dict[str, Any]:
    """The documented members; `payload` is the event's data without the submitted config."""
    data: dict[str, Any] = msgspec.json.decode(recorded.data)
    payload = {name: value for name, value in data.items() if name not in _LARGE and name != "token_sha256"}
    return {
        **bare_body(recorded),
        "status": status,
        "updates": {} if status is None else {"status": status},
        "payload": payload,
        "external_job_id": data.get("provider_ref"),
    }


def progress_body(job_id: UUID, line: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and body for a metrics or phase line of a trainer; not log-backed, so it has no id."""
    name = "training.progress" if line.get("type") == "metrics" else "lifecycle.stage"
    data = line.get("data")
    return name, {"type": name, "job_id": str(job_id), "ts": line.get("ts"), "data": data}
