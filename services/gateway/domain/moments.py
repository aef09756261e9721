"""`?at=`: a position of the log, or a moment."""

from datetime import UTC, datetime

from services.gateway.domain.refusals import invalid


def parse_at(text: str, field: str = "at") -> int | datetime:
    """A log position (digits) or an ISO 8601 time, in UTC unless it says otherwise; `field` is named if it is neither.

    A `+` that a URL turned into a space is read as the plus it was.
    """
    given = text.strip()
    if given.isascii() and given.isdigit() and len(given) < 19:  # noqa: PLR2004 -- more digits than a position has
        return int(given)
    is_dated = given[4:5] == "-"  # fromisoformat takes more for a time than a person would
    try:
        moment = datetime.fromisoformat(_with_plus(given)) if is_dated else None
    except ValueError:
        moment = None
    if moment is None:
        advice = "Use a log position such as 1234, or a time such as 2026-11-22T10:00:00Z."
        raise invalid(field, f"{text!r} is neither a position nor a time", advice)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _with_plus(text: str) -> str:
    return text.replace(" ", "+") if "T" in text else text
