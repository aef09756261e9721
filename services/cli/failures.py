"""What can go wrong, as the person should read it: what is wrong, where, and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from services.cli.exit_codes import ERROR


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: the field or file it is about, the fault, and the way out."""

    where: str
    message: str
    advice: str = ""


class CliError(Exception):
    """Ends the command; printed on stderr, never as a traceback."""

    def __init__(
        self, message: str, *, places: Sequence[Place] = (), advice: str = "", code: str = "", exit_code: int = ERROR
    ) -> None:
        super().__init__(message)
        self.message = message
        self.places = places
        self.advice = advice
        self.code = code
        self.exit_code = exit_code


_ADVICE = {
    "service_unavailable": "Try again in a moment; `tunewright up` must be running.",
    "job_not_found": "`tunewright ps` lists the jobs.",
    "unknown_provider": "Name one of the known providers with --provider.",
    "provider_not_configured": "`GET /api/cloud/providers` says what is missing; docs/providers.md how to set it up.",
    "idempotency_key_reused": "Use a new --idempotency-key for another request.",
    "invalid_job_state": "`tunewright describe JOB` shows the job's state.",
    "internal_error": "The service's log says more; the request id finds it there.",
}


def from_problem(document: Mapping[str, Any], status: int) -> CliError:
    """The error of a problem document; whatever members it lacks are left out."""
    code = str(document.get("code") or document.get("error") or "")
    title = str(document.get("title") or f"the server answered {status}")
    detail = str(document.get("detail") or "")
    message = f"{title}: {detail}" if detail and detail != title else title
    request_id = document.get("request_id")
    return CliError(
        f"{message} (request {request_id})" if request_id and status >= 500 else message,  # noqa: PLR2004 - 5xx
        places=_places(document.get("errors")),
        advice=str(document.get("advice") or _ADVICE.get(code, "")),
        code=code,
    )


def _places(errors: object) -> list[Place]:
    if not isinstance(errors, list):
        return []
    found: list[Place] = []
    for item in cast("list[object]", errors):
        if isinstance(item, dict):
            error = cast("dict[str, object]", item)
            found.append(
                Place(
                    where=str(error.get("field") or ""),
                    message=str(error.get("message") or ""),
                    advice=str(error.get("advice") or ""),
                )
            )
    return found
