"""The connection to the gateway: the token, which may be renewed on disk, and how long to wait between tries."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

RETRYABLE_STATUS = frozenset({408, 425, 429})
UNAUTHORISED_STATUS = frozenset({401, 403})
_SERVER_ERROR = 500
_TIMEOUT = httpx.Timeout(connect=10, read=60, write=60, pool=10)


class Token:
    """The attempt's bearer token, from a file that may be replaced while we run, or from the environment."""

    def __init__(self, path: Path | None, initial: str = "", on_change: Callable[[str], None] | None = None) -> None:
        self._path = path
        self._on_change = on_change
        self.value = initial
        self.reread()

    def reread(self) -> None:
        """Take the token from its file again; without a file the first value stays."""
        if self._path is not None and self._path.exists():
            # Whoever renews the file may have emptied it a moment ago; an empty token would never be refused
            # by the server (the request could not even be made), so it would never be read again.
            self.value = self._path.read_text(encoding="utf-8").strip() or self.value
        if self._on_change is not None:
            self._on_change(self.value)


@dataclass
class Backoff:
    """Exponential waiting with jitter, honouring Retry-After. The limits are seconds."""

    minimum_s: float = field(default_factory=lambda: float(os.environ.get("TRAINER_BACKOFF_MIN_S", "1")))
    maximum_s: float = field(default_factory=lambda: float(os.environ.get("TRAINER_BACKOFF_MAX_S", "60")))
    _failures: int = 0

    def next_wait_s(self, response: httpx.Response | None = None) -> float:
        """How long to wait after one more failure."""
        self._failures += 1
        asked = response.headers.get("retry-after", "") if response is not None else ""
        if asked.isdigit():
            return min(float(asked), self.maximum_s)
        ceiling_s = min(self.maximum_s, self.minimum_s * 2 ** min(self._failures - 1, 16))
        return ceiling_s * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret

    def reset(self) -> None:
        """The last try succeeded."""
        self._failures = 0


class Gateway:
    """Requests to one gateway origin with the attempt's token. Thread-safe; one connection pool."""

    def __init__(self, origin: str, token: Token) -> None:
        self.token = token
        # trust_env off: proxy settings of the machine are not meant for the control plane of this attempt.
        self.http = httpx.Client(base_url=origin.rstrip("/"), timeout=_TIMEOUT, trust_env=False)

    def headers(self) -> dict[str, str]:
        """The authorisation header with the token as it is now."""
        return {"Authorization": f"Bearer {self.token.value}"}

    def close(self) -> None:
        """Close all connections."""
        self.http.close()


def is_retryable(status: int) -> bool:
    """Statuses that speak about the server's moment, not about our request."""
    return status in RETRYABLE_STATUS or status in UNAUTHORISED_STATUS or status >= _SERVER_ERROR
