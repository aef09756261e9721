"""What the bridge needs of a provider, whoever it is. Every implementation passes tests/contract/test_provider.py.

Every method that asks the provider raises Unavailable when it does not answer, answers rubbish, or asks us to wait.
`submit` is never repeated by an adapter: whether a start whose answer was lost took place is for `find` to say.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Protocol, Self, runtime_checkable
from uuid import UUID

import msgspec

from shared.contracts.offers import Offer
from shared.contracts.provider import VersionView
from shared.contracts.run import RunSpec

Metering = Literal["trainer", "machine"]
TestedAgainst = Literal["vendor program", "simulator", "itself"]


class StartRefused(Exception):  # noqa: N818 - an answer, not an error
    """The provider will not start this run however often it is asked: why, and what a person can do."""

    kind = "start_refused"

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class NoCapacity(StartRefused):
    """There is no such machine now. Nothing was started; another offer, or a later moment, may do."""

    kind = "no_capacity"


class NoFunds(StartRefused):
    """The account at the provider has no money or quota left: nothing more can be started there for a while."""

    kind = "no_funds"


class CredentialRefused(StartRefused):
    """The provider does not accept our key, or the key may not do this."""

    kind = "credentials_refused"


class StaleEpoch(Exception):  # noqa: N818 - an answer, not an error
    """The provider has heard from a newer owner of this attempt; nothing was done."""


class WebhookRefused(Exception):  # noqa: N818 - an answer, not an error
    """The webhook is not to be believed; `reason` is one of ProviderWebhookRefused's."""

    def __init__(
        self, reason: Literal["invalid_signature", "stale_timestamp", "replayed", "unreadable"], detail: str
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is found by at the provider, and the epoch of the lease under which we ask."""

    attempt_id: UUID
    epoch: int

    def label(self, installation: str) -> str:
        """At most 50 of a-z, 0-9 and `-`: the name of the run where a provider has room for one name.

        `installation` keeps apart control planes that share an account: 8 hex digits.
        """
        return f"tw-{installation}-{self.attempt_id.hex}-{self.epoch}"

    @classmethod
    def parse(cls, label: str, installation: str) -> Self | None:
        """The tag in a label of this installation; None for any other text."""
        found = re.fullmatch(rf"tw-{re.escape(installation)}-([0-9a-f]{{32}})-([0-9]+)", label)
        return cls(attempt_id=UUID(hex=found[1]), epoch=int(found[2])) if found else None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider can do; None = no limit, or not known. docs/providers.md is made from these."""

    can_cancel: bool
    live_logs: bool
    cost: bool
    """Tells the cost of a run itself."""
    spot: bool
    max_run_time_s: int | None
    upload_limit_bytes: int | None
    """Of one file of a dataset handed over in the provider's own way."""
    site: str | None
    """Where its runs can be reached from: None = from everywhere, else only by bridges of that site."""
    metering: Metering = "trainer"
    webhooks: bool = False
    knows_outcome: bool = True
    """Tells success from failure by itself; else only the trainer's report does."""
    fences_epochs: bool = False
    """Keeps lower epochs out by itself, for good: a run that it has of an attempt is the attempt's one run."""
    default_hardware: str = ""
    """What a run is on when nobody chose an offer."""
    tested_against: TestedAgainst = "simulator"


class StartOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One run to be started. `token` is the trainer's; it stands in no event, log or URL."""

    tag: Tag
    spec: RunSpec
    token: str
    offer: Offer | None = None
    """The machine that was chosen; None = the provider's own default."""
    max_run_s: int | None = None
    """After so long the trainer saves and ends itself, and the bridge ends the machine a little later."""
    webhook_url: str | None = None
    """Where the provider may tell us of changes; None when we have no address that it could reach."""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the provider shows it; `word` is the provider's own, see `domain.provider_status`.

    Moments are by our clock; where the provider's clock is shown too, they are corrected by the difference.
    """

    ref: str
    word: str
    exit_code: int | None = None
    started_at: datetime | None = None
    """Since when it costs money; None = not known."""
    ended_at: datetime | None = None
    """When it ended; of a run that is gone, when it last showed a sign of life. None = not known."""
    billed_s: float | None = None
    """Seconds that the provider says it charges for; None = it does not say (yet)."""
    last_words: str = ""
    epoch: int | None = None
    """Under which it was started; None = the provider keeps lower epochs out, so it is the newest intent's."""


def later_view(view: RunView | None, before: RunView | None) -> RunView | None:
    """The newer view of a run; what it does not tell (any more) is as it was."""
    if view is None or before is None:
        return view or before
    return msgspec.structs.replace(
        view,
        started_at=view.started_at or before.started_at,
        ended_at=view.ended_at or before.ended_at,
        billed_s=before.billed_s if view.billed_s is None else view.billed_s,
    )


class OurRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of ours that is alive at the provider."""

    tag: Tag
    ref: str
    started_at: datetime | None = None
    price_micro_usd_per_hour: int = 0


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a run's own log since a cursor; `cursor` is the provider's, to be handed back as it is."""

    lines: list[str]
    cursor: str | None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Whose key it is, as the provider says."""

    username: str
    detail: str = ""
    """What else is worth showing: the kind of the account, what the key may do."""


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What is left; None = the provider does not say, and `note` tells where a person can look."""

    micro_usd: int | None
    note: str = ""


class WebhookNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a genuine webhook is about. It is a hint: the run is fetched before anything is believed."""

    webhook_id: str
    """The same for a repeat."""
    ref: str
    word: str
    attempt_id: UUID | None = None


class Provider(Protocol):
    """Starts, finds, shows and ends runs of one account at one provider."""

    @property
    def name(self) -> str:
        """As jobs name it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    async def quote(self) -> list[Offer]:
        """What can be had now, and at which price."""
        ...

    async def submit(self, order: StartOrder) -> str:
        """The run's ref. A run with exactly this tag that exists already is found, never started twice.

        A run of another epoch is no reason to start none: its trainer's token is worth nothing any more.

        Raises:
            StartRefused: it cannot be started here; NoCapacity, NoFunds and CredentialRefused say why.
            StaleEpoch: a newer epoch has asked about this attempt.
            Unavailable: it may or may not have been started.
        """
        ...

    async def find(self, tag: Tag) -> RunView | None:
        """The newest run of this attempt, None if there is none. From then on a lower epoch starts and stops nothing.

        Where the provider itself cannot keep lower epochs out, this process does (`outbound.fences`).

        Raises:
            StaleEpoch: a newer epoch has asked about this attempt.
        """
        ...

    async def fetch(self, ref: str) -> RunView | None:
        """A run by its ref; None if the provider does not know it any more."""
        ...

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """What the run has written since `after` (None: from its beginning); empty where there is nothing to read."""
        ...

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Asks the run to end, by force after `grace_s`. Repeats, and runs that are unknown or over, are no error.

        Raises:
            StaleEpoch: a newer epoch has asked about this attempt.
        """
        ...

    async def confirm_gone(self, ref: str) -> bool:
        """Whether nothing of the run is alive, or costs anything."""
        ...

    async def list_ours(self) -> list[OurRun]:
        """Every run of this installation that is alive, those that ended by themselves and still cost money too."""
        ...

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:
        """What a webhook is about; header names are in lower case.

        Raises:
            WebhookRefused: it is not genuine, or cannot be read, or this provider sends none.
        """
        ...

    async def validate_credentials(self) -> Account:
        """Whose account it is. Raises CredentialRefused."""
        ...

    async def balance(self) -> Balance:
        """What is left on the account."""
        ...

    async def close(self) -> None:
        """Gives back connections."""
        ...


@runtime_checkable
class HasVersions(Protocol):
    """A provider where what trains is a model with versions."""

    @property
    def version(self) -> str | None:
        """The one that is used; None = the newest."""
        ...

    async def versions(self, model_id: str | None) -> list[VersionView]:
        """The versions of a model, newest first; None = the model that trains."""
        ...


class Providers(Protocol):
    """Which providers there are now. Their settings and keys may change at any moment, so nobody keeps one."""

    def of(self, name: str, user_id: str | None = None) -> Provider | None:
        """The provider with this user's credentials, else with everybody's; None if it is not set up."""
        ...

    def known(self) -> list[Provider]:
        """All that are set up, with each set of credentials."""
        ...
