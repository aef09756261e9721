"""What the bridge needs of a provider, whoever it is. Every implementation passes tests/contract/test_provider.py."""

from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from shared.contracts.attempt import Quote
from shared.contracts.run import RunSpec


class StartRefused(Exception):  # noqa: N818 - an answer, not an error
    """The provider will not start this run however often it is asked: why, and what a person can do."""

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class StaleEpoch(Exception):  # noqa: N818 - an answer, not an error
    """The provider has heard from a newer owner of this attempt; nothing was done."""


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is found by at the provider, and the epoch of the lease under which we ask."""

    attempt_id: UUID
    epoch: int


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider can do; None = no limit, or not known."""

    can_cancel: bool
    live_logs: bool
    cost: bool
    spot: bool
    max_run_time_s: int | None
    upload_limit_bytes: int | None
    site: str | None
    """Where its runs can be reached from: None = from everywhere, else only by bridges of that site."""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the provider shows it; `word` is the provider's own, see `domain.provider_status`."""

    ref: str
    word: str
    exit_code: int | None = None
    ended_at: datetime | None = None
    """When it ended; of a run that is gone, when it last showed a sign of life. None = not known."""
    last_words: str = ""


class OurRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of ours that is alive at the provider."""

    tag: Tag
    ref: str


class Provider(Protocol):
    """Starts, finds, shows and ends runs. All methods raise Unavailable when the provider does not answer."""

    @property
    def name(self) -> str:
        """As jobs name it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def quote(self, price_micro_usd_per_hour: int) -> Quote:
        """The hardware an attempt would be bound to, at the price billing has set."""
        ...

    async def submit(self, tag: Tag, spec: RunSpec, token: str) -> str:
        """The run's ref. A run with this attempt's id that exists already is found, never started twice.

        Raises:
            StartRefused: it cannot be started here.
            StaleEpoch: a newer epoch has asked about this attempt.
        """
        ...

    async def find(self, tag: Tag) -> RunView | None:
        """The run of this attempt, or None if there is none. From then on no lower epoch starts or stops anything.

        Raises:
            StaleEpoch: a newer epoch has asked about this attempt.
        """
        ...

    async def fetch(self, ref: str) -> RunView | None:
        """A run by its ref; None if the provider does not know it any more."""
        ...

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Asks the run to end, by force after `grace_s`. Repeats, and runs that are unknown or over, are no error.

        Raises:
            StaleEpoch: a newer epoch has asked about this attempt.
        """
        ...

    async def confirm_gone(self, ref: str) -> bool:
        """Whether nothing of the run is alive."""
        ...

    async def list_ours(self) -> list[OurRun]:
        """Every run of ours that is alive."""
        ...
