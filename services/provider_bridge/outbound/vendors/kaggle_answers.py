"""What Kaggle's answers mean to us: refusals, moments, hours and logs. Pure, and lenient about what is missing."""

import http
import json
from datetime import UTC, datetime
from typing import Any, cast

from services.provider_bridge.outbound.egress import Forbidden, VendorRefused
from services.provider_bridge.outbound.ports import CredentialRefused, NoCapacity, NoFunds, StartRefused
from shared.problems import Unavailable

_KEY_ADVICE = "Create a new API token in Kaggle's settings, and set KAGGLE_USERNAME and KAGGLE_KEY."


def error_in(content: dict[str, Any]) -> Exception | None:
    """Kaggle's errors also come in an answer with status 200: the one in the body, None if all is well."""
    code = content.get("code")
    if not isinstance(code, int) or code < http.HTTPStatus.BAD_REQUEST:
        return None
    message = str(content.get("message") or "no reason given")
    if code == http.HTTPStatus.UNAUTHORIZED:
        return CredentialRefused(f"Kaggle refuses our credentials: {message}", _KEY_ADVICE)
    if code == http.HTTPStatus.FORBIDDEN:
        return Forbidden(f"Kaggle does not allow it: {message}", _KEY_ADVICE)
    if code == http.HTTPStatus.TOO_MANY_REQUESTS or code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(f"Kaggle answers {code}: {message}")
    return VendorRefused(code, content, message)


def refusal_of(text: str) -> StartRefused:
    """The reason why a push was not run, by the text in which Kaggle gives it."""
    lower = text.lower()
    if "session count" in lower or "concurrent" in lower:
        return NoCapacity(f"Kaggle runs no more of this account's sessions at once: {text}")
    if "quota" in lower or "exceeded" in lower:
        return NoFunds(f"The account's weekly hours are used up: {text}", "Wait until Kaggle's week begins anew.")
    return StartRefused(
        f"Kaggle does not take the kernel: {text}",
        "GPUs and internet need an account with a verified phone number; see the settings of the account.",
    )


def moment(text: object) -> datetime | None:
    """A moment as Kaggle writes it (UTC, with or without a Z, up to nanoseconds); None for what is none."""
    if not isinstance(text, str) or not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    try:
        found = datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}" if fraction.isdigit() else whole)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def seconds(text: object) -> float | None:
    """A span as Kaggle writes it, `"108000s"`; None for what is none."""
    if not isinstance(text, str):
        return None
    try:
        return float(text.removesuffix("s"))
    except ValueError:
        return None


def hours_left(content: dict[str, Any]) -> tuple[float, float] | None:
    """GPU hours that are left this week, and how many there are in all; None where Kaggle does not say."""
    quota = content.get("gpuQuota")
    if not isinstance(quota, dict):
        return None
    spans = cast("dict[str, Any]", quota)
    total = seconds(spans.get("totalTimeAllowed"))
    if total is None:
        return None
    spent = (seconds(spans.get("timeUsed")) or 0) + (seconds(spans.get("timeReserved")) or 0)
    return max(0.0, total - spent) / 3600, total / 3600


def log_events(text: str) -> list[dict[str, Any]]:
    """A stored log: a JSON array of `{stream_name, time, data}`; any other text is its own lines."""
    try:
        decoded: object = json.loads(text)
    except ValueError:
        decoded = None
    if not isinstance(decoded, list):
        return [{"data": line} for line in text.splitlines()]
    entries = cast("list[Any]", decoded)
    return [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]


def log_event(data: str) -> dict[str, Any]:
    """One event of a live log."""
    try:
        decoded: object = json.loads(data)
    except ValueError:
        decoded = None
    return cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {"data": data}


def lines_of(events: list[dict[str, Any]]) -> list[str]:
    """The lines in the events of a log."""
    return [line for event in events for line in str(event.get("data", "")).splitlines()]
