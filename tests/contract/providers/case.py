"""What the contract suite does to a provider's other side, be it a simulator or the vendor's own program."""

from collections.abc import Mapping
from typing import Literal, Protocol
from uuid import UUID

import pytest

from services.provider_bridge.outbound.ports import Provider

Trouble = Literal["500", "429", "html", "hang", "reset"]
Lack = Literal["capacity", "funds"]


class Case(Protocol):
    """A provider under test. A method that makes no sense for it calls `not_here`, which skips the test."""

    def connect(self, *, installation: str = "0a1b2c3d", key: str | None = None) -> Provider:
        """A new client of the same account, as a restarted bridge would make; `key` replaces the right one."""
        ...

    def starts(self, attempt_id: UUID) -> int:
        """How many runs were ever started for the attempt."""
        ...

    def begin(self, attempt_id: UUID) -> None:
        """The run leaves the provider's queue."""
        ...

    def finish(self, attempt_id: UUID, code: int = 0) -> None:
        """The trainer of the run ends by itself with this exit code."""
        ...

    def vanish(self, attempt_id: UUID) -> None:
        """The run is taken away: preempted, or its machine died."""
        ...

    def say(self, attempt_id: UUID, word: str) -> None:
        """From now on the provider calls the run this."""
        ...

    def lose_next_reply(self) -> None:
        """The next start takes place, and its answer is lost."""
        ...

    def trouble(self, kind: Trouble | None) -> None:
        """From now on every answer is of this kind; None: all is well again."""
        ...

    def lack(self, what: Lack | None) -> None:
        """From now on no start is taken, for want of this."""
        ...

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:
        """Headers, query and body of the webhook that the provider would send about the run now."""
        ...

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        """Path with query, and headers, of every request that came."""
        ...


def not_here(why: str) -> None:
    """Skips the test: this provider cannot do that."""
    pytest.skip(why)
