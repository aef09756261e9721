"""Which attempt a trainer's token speaks for, and what it may touch."""

import hashlib
import hmac
from collections.abc import Iterable

from services.gateway.domain.view_attempt import AttemptView
from shared.problems import Rejected

OUTPUT_BUCKET = "outputs"


def token_digest(token: str) -> str:
    """The SHA-256 hex that the log keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def matches(attempt: AttemptView, token: str) -> bool:
    """The token is this attempt's; compared in constant time."""
    return hmac.compare_digest((attempt.token_sha256 or "").encode(), token_digest(token).encode())


def holder(attempts: Iterable[AttemptView], token: str) -> AttemptView:
    """The attempt that this token belongs to. Raises `invalid_token`."""
    found = [attempt for attempt in attempts if attempt.token_sha256 and matches(attempt, token)]
    if not found:
        raise Rejected("invalid_token", "this token belongs to no attempt of the job")
    return found[0]


def require_live(attempt: AttemptView, newest_number: int) -> AttemptView:
    """Refuses an attempt that has ended, or that the job has gone on without."""
    if attempt.ended or attempt.number < newest_number:
        raise Rejected(
            "attempt_superseded",
            f"attempt {attempt.number} is over ({attempt.state}); stop this run",
            attempt_id=str(attempt.attempt_id),
            job_id=str(attempt.job_id),
        )
    return attempt


def check_upload_place(bucket: str, key: str) -> str:
    """The job id that the object `bucket/key` belongs to; attempts write to `outputs/<job_id>/…` only."""
    job_id, _, rest = key.partition("/")
    if bucket != OUTPUT_BUCKET or not job_id or not rest:
        detail = f"uploads go to {OUTPUT_BUCKET}/<job_id>/<name>, not to {bucket}/{key}"
        raise Rejected("invalid_object_key", detail)
    if any(part in {"", ".", ".."} for part in key.split("/")) or "\\" in key or not key.isprintable():
        raise Rejected("invalid_object_key", "object names have no empty or dotted parts and no control characters")
    return job_id
