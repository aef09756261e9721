"""`?at=`: a position of the log, or a moment."""

from datetime import UTC, datetime

from services.gateway.domain.submission import invalid


def parse_at(text: str) -> int | datetime:
    """A log position (digits) or an ISO 8601 time, in UTC unless it says otherwise.

    A `+` that a URL turned into a space is read as the plus it was.
    """
    given = text.strip()
    if given.isascii() and given.isdigit() and len(given) < 19:  # noqa: PLR2004 -- more digits than a position has
        return int(given)
    try:
        moment = datetime.fromisoformat(given.replace(" ", "+") if given.count(" ") == 1 and "T" in given else given)
    except ValueError as error:
        advice = "Use a log position such as 1234, or a time such as 2026-11-22T10:00:00Z."
        raise invalid("at", f"{text!r} is neither a position nor a time", advice) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
