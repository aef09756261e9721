"""What Replicate shows of a training or prediction, in our terms. Missing and odd members are normal."""

from services.provider_bridge.domain.exits import exit_code_in
from services.provider_bridge.outbound.egress import Answer
from services.provider_bridge.outbound.ports import LogPage, RunView
from services.provider_bridge.outbound.vendors.shapes import Object, a_moment, a_number, a_text, an_object

_LAST_WORDS_CHARS = 500
_LAST_LINES = 5


def view_of(shown: Object, ref: str, answer: Answer) -> RunView:
    """A run as it stands; moments by our clock."""
    word, error = a_text(shown.get("status")), a_text(shown.get("error"))
    started_at, ended_at = a_moment(shown.get("started_at")), a_moment(shown.get("completed_at"))
    return RunView(
        ref=ref,
        word=word,
        exit_code=0 if word == "succeeded" else exit_code_in(error) if word == "failed" else None,
        started_at=answer.ours(started_at) if started_at else None,
        ended_at=answer.ours(ended_at) if ended_at else None,
        billed_s=_billed_s(shown, word, never_began=ended_at is not None and started_at is None),
        last_words=(error or _last_lines(a_text(shown.get("logs"))))[-_LAST_WORDS_CHARS:],
    )


def label_of(shown: Object) -> str:
    """Our label in its input; empty if there is none, or the input was removed."""
    return a_text(an_object(shown.get("input")).get("label"))


def log_page(shown: Object, after: str | None, *, is_over: bool) -> LogPage:
    """The whole lines behind `after`, characters of the log that were read; a last line without an end waits."""
    text = a_text(shown.get("logs"))
    start = int(after) if after is not None and after.isdigit() else 0
    end = len(text) if is_over else text.rfind("\n") + 1
    if end <= start:  # nothing new, or the log was removed
        return LogPage(lines=[], cursor=after)
    return LogPage(lines=text[start:end].splitlines(), cursor=str(end))


def _billed_s(shown: Object, word: str, *, never_began: bool) -> float | None:
    if word == "aborted" or never_began:  # its deadline, or somebody's wish, came before its start: that is free
        return 0.0
    return a_number(an_object(shown.get("metrics")).get("predict_time"))


def _last_lines(logs: str) -> str:
    return " | ".join([line.strip() for line in logs.splitlines() if line.strip()][-_LAST_LINES:])
