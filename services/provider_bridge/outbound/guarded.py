"""A provider behind its breaker: calls that get no answer are counted, and after some nobody waits for it any more.

The counters are this process's own; what they lead to are events on the provider's stream, so every replica and every
restart knows that the breaker is open (domain/provider.py). A provider that wants money or another key is suspended in
the same way: the scheduler places nothing there until somebody has seen to it.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TypeVar

from services.provider_bridge.domain.provider import (
    CountFailures,
    CountSuccesses,
    ProviderState,
    Suspend,
    TryAgain,
)
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    CredentialRefused,
    LogPage,
    NoFunds,
    OurRun,
    Provider,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
)
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.contracts.offers import Offer
from shared.problems import Rejected, Unavailable

T = TypeVar("T")

_LOOK_AGAIN_S = 1.0
"""How long what the log says of a breaker is believed: others may have moved it."""


class GuardedProvider:
    """The port to a provider, closed while it does not answer."""

    def __init__(self, inner: Provider, streams: ProviderStreams, clock: Clock) -> None:
        self._inner = inner
        self._streams = streams
        self._clock = clock
        self._failures = 0
        self._successes = 0
        self._known: tuple[datetime, ProviderState] | None = None

    @property
    def name(self) -> str:
        """As jobs name it."""
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return self._inner.capabilities

    async def quote(self) -> list[Offer]:
        """What can be had now."""
        return await self._call(self._inner.quote)

    async def submit(self, order: StartOrder) -> str:
        """Starts a run, or says why not; want of money and a refused key are kept on the provider's stream too."""
        return await self._call(lambda: self._inner.submit(order))

    async def find(self, tag: Tag) -> RunView | None:
        """The newest run of an attempt."""
        return await self._call(lambda: self._inner.find(tag))

    async def fetch(self, ref: str) -> RunView | None:
        """A run by its ref."""
        return await self._call(lambda: self._inner.fetch(ref))

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """What a run has written."""
        return await self._call(lambda: self._inner.logs(ref, after))

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Asks a run to end."""
        await self._call(lambda: self._inner.cancel(tag, ref, grace_s))

    async def confirm_gone(self, ref: str) -> bool:
        """Whether nothing of a run is alive."""
        return await self._call(lambda: self._inner.confirm_gone(ref))

    async def list_ours(self) -> list[OurRun]:
        """Every run of ours that is alive."""
        return await self._call(self._inner.list_ours)

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:
        """What a webhook is about."""
        return self._inner.verify_webhook(headers, query, body)

    async def validate_credentials(self) -> Account:
        """Whose account it is."""
        return await self._call(self._inner.validate_credentials)

    async def balance(self) -> Balance:
        """What is left."""
        return await self._call(self._inner.balance)

    async def close(self) -> None:
        """Gives back connections."""
        await self._inner.close()

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        await self._enter()
        try:
            answer = await ask()
        except Unavailable as away:
            await self._failed(away.detail)
            raise
        except (NoFunds, CredentialRefused) as refusal:
            await self._answered()
            await self._suspend(refusal)
            raise
        except StartRefused:
            await self._answered()
            raise
        await self._answered()
        return answer

    async def _enter(self) -> None:
        state = await self._state()
        now = self._clock()
        if state.breaker.state != "open":
            return
        retry_at = state.breaker.retry_at or now
        if now >= retry_at:
            self._successes = 0
            await self._tell(TryAgain(provider=self.name, at=now))
            return
        wait_s = max(1, round((retry_at - now).total_seconds()))
        raise Unavailable(f"{self.name} did not answer; it is tried again in {wait_s} s", retry_after_s=wait_s)

    async def _failed(self, reason: str) -> None:
        self._failures += 1
        self._successes = 0
        await self._tell(CountFailures(provider=self.name, failures=self._failures, reason=reason, at=self._clock()))

    async def _answered(self) -> None:
        self._failures = 0
        if (await self._state()).breaker.state == "half_open":
            self._successes += 1
            await self._tell(CountSuccesses(provider=self.name, successes=self._successes, at=self._clock()))

    async def _suspend(self, refusal: NoFunds | CredentialRefused) -> None:
        kind = "no_funds" if isinstance(refusal, NoFunds) else "credentials_refused"
        await self._tell(Suspend(provider=self.name, kind=kind, message=refusal.message, at=self._clock()))

    async def _state(self) -> ProviderState:
        now = self._clock()
        if self._known is None or not 0 <= (now - self._known[0]).total_seconds() < _LOOK_AGAIN_S:
            self._known = (now, await self._streams.load(self.name))
        return self._known[1]

    async def _tell(self, command: TryAgain | CountFailures | CountSuccesses | Suspend) -> None:
        try:
            done = await self._streams.execute(self.name, command)
        except Rejected as busy:  # others tell of the same provider at the same time; theirs is as good as ours
            raise Unavailable(busy.detail) from busy
        self._known = (self._clock(), done.state)
