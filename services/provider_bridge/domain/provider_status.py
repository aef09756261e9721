"""Provider words -> ours. A word that nobody has seen before is a result of its own, never a default."""

from enum import Enum

import msgspec


class RunStatus(Enum):
    """What a provider's word means to us."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    """It ended and the provider says how."""
    GONE = "gone"
    """It ended and nobody says how."""


class UnknownWord(msgspec.Struct, frozen=True, kw_only=True):
    """The provider said something that is in no table: keep the last known state, and tell a person."""

    provider: str
    word: str


WORDS: dict[str, dict[str, RunStatus]] = {
    "local": {
        "claimed": RunStatus.QUEUED,
        "running": RunStatus.RUNNING,
        "exited": RunStatus.ENDED,
        "gone": RunStatus.GONE,
    },
    "worker": {
        "assigned": RunStatus.QUEUED,
        "running": RunStatus.RUNNING,
        "ended": RunStatus.ENDED,
        "gone": RunStatus.GONE,
    },
    "replicate": {
        "starting": RunStatus.QUEUED,
        "processing": RunStatus.RUNNING,
        "succeeded": RunStatus.ENDED,
        "failed": RunStatus.ENDED,
        "canceled": RunStatus.GONE,
        "aborted": RunStatus.GONE,
    },
    "runpod_serverless": {
        "IN_QUEUE": RunStatus.QUEUED,
        "IN_PROGRESS": RunStatus.RUNNING,
        "RUNNING": RunStatus.RUNNING,
        "COMPLETED": RunStatus.ENDED,
        "FAILED": RunStatus.ENDED,
        "CANCELLED": RunStatus.GONE,
        "TIMED_OUT": RunStatus.GONE,
    },
    "runpod": {
        "PROVISIONING": RunStatus.QUEUED,
        "STARTING": RunStatus.QUEUED,
        "RUNNING": RunStatus.RUNNING,
        "EXITED": RunStatus.GONE,
        "ERROR": RunStatus.GONE,
        "TERMINATED": RunStatus.GONE,
    },
    "lambda": {
        "booting": RunStatus.QUEUED,
        "active": RunStatus.RUNNING,
        "unhealthy": RunStatus.GONE,
        "terminating": RunStatus.GONE,
        "terminated": RunStatus.GONE,
        "preempted": RunStatus.GONE,
    },
    "kaggle": {
        "QUEUED": RunStatus.QUEUED,
        "NEW_SCRIPT": RunStatus.QUEUED,
        "RUNNING": RunStatus.RUNNING,
        "CANCEL_REQUESTED": RunStatus.RUNNING,
        "COMPLETE": RunStatus.ENDED,
        "ERROR": RunStatus.ENDED,
        "CANCEL_ACKNOWLEDGED": RunStatus.GONE,
    },
    "huggingface": {
        "SCHEDULING": RunStatus.QUEUED,
        "RUNNING": RunStatus.RUNNING,
        "COMPLETED": RunStatus.ENDED,
        "ERROR": RunStatus.ENDED,
        "CANCELED": RunStatus.GONE,
        "DELETED": RunStatus.GONE,
    },
    "hf_spaces": {
        "NO_APP_FILE": RunStatus.QUEUED,
        "BUILDING": RunStatus.QUEUED,
        "APP_STARTING": RunStatus.QUEUED,
        "RUNNING": RunStatus.RUNNING,
        "RUNNING_BUILDING": RunStatus.RUNNING,
        "RUNNING_APP_STARTING": RunStatus.RUNNING,
        "CONFIG_ERROR": RunStatus.GONE,
        "BUILD_ERROR": RunStatus.GONE,
        "RUNTIME_ERROR": RunStatus.GONE,
        "STOPPED": RunStatus.GONE,
        "PAUSED": RunStatus.GONE,
        "DELETING": RunStatus.GONE,
    },
    "skypilot": {
        "PENDING": RunStatus.QUEUED,
        "SUBMITTED": RunStatus.QUEUED,
        "STARTING": RunStatus.QUEUED,
        "RUNNING": RunStatus.RUNNING,
        "WINDING_DOWN": RunStatus.RUNNING,
        "RECOVERING": RunStatus.RUNNING,
        "CANCELLING": RunStatus.RUNNING,
        "SUCCEEDED": RunStatus.ENDED,
        "FAILED": RunStatus.ENDED,
        "CANCELLED": RunStatus.GONE,
        "FAILED_SETUP": RunStatus.GONE,
        "FAILED_PRECHECKS": RunStatus.GONE,
        "FAILED_NO_RESOURCE": RunStatus.GONE,
        "FAILED_CONTROLLER": RunStatus.GONE,
    },
}
"""The providers' words as providers.md §0.2 has them. What is not here is not guessed."""


def read_word(provider: str, word: str) -> RunStatus | UnknownWord:
    """The meaning of a provider's status word, compared exactly."""
    found = WORDS.get(provider, {}).get(word)
    return UnknownWord(provider=provider, word=word) if found is None else found
