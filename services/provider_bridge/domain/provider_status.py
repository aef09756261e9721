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
}


def read_word(provider: str, word: str) -> RunStatus | UnknownWord:
    """The meaning of a provider's status word, compared exactly."""
    found = WORDS.get(provider, {}).get(word)
    return UnknownWord(provider=provider, word=word) if found is None else found
