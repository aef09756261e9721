"""Keeps what providers offer in the log: the scheduler places by it, billing sets money aside by it."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from services.provider_bridge.domain.provider import PublishOffers
from services.provider_bridge.outbound.ports import CredentialRefused, Provider, Providers
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.contracts.offers import Offer
from shared.problems import Rejected, Unavailable

ASK_S = 5.0
LOOK_S = 1.0
"""How often it is looked whether there is a provider that was never asked."""

log = structlog.stdlib.get_logger()


class Quoter:
    """Asks every provider that is set up, and writes down what has changed.

    `limit_s` says how long a run may take on a provider's machines as far as its settings go: no offer promises more.
    """

    def __init__(
        self,
        providers: Providers,
        streams: ProviderStreams,
        clock: Clock,
        *,
        interval_s: float,
        limit_s: Callable[[str], int | None] = lambda _provider: None,
    ) -> None:
        self._providers = providers
        self._streams = streams
        self._clock = clock
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._asked: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set: every `interval_s`, and at once when a provider was set up."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while not stop.is_set():
            if loop.time() >= due_s or {provider.name for provider in self._providers.known()} != self._asked:
                await self.round()
                due_s = loop.time() + self._interval_s
            await _pause(stop, min(LOOK_S, self._interval_s))

    async def round(self) -> None:
        """One look at each; of a provider that is no longer set up the offers are withdrawn."""
        by_name = {provider.name: provider for provider in reversed(self._providers.known())}
        for name in sorted(self._asked - by_name.keys()):
            await self._publish(name, [])
        await asyncio.gather(*(self._ask(provider) for provider in by_name.values()))
        self._asked = set(by_name)

    async def ask(self, name: str) -> None:
        """One look at a provider whose settings or keys have just changed; one that is slow is asked again later."""
        provider = self._providers.of(name)
        if provider is None:
            await self._publish(name, [])
            return
        try:
            async with asyncio.timeout(ASK_S):
                await self._ask(provider)
        except TimeoutError:
            log.warning("bridge.quote.failed", provider=name, detail=f"no answer within {ASK_S:g} s")

    async def _ask(self, provider: Provider) -> None:
        try:
            offers = await provider.quote()
        except (Unavailable, CredentialRefused) as away:  # what it offered last stays, and its breaker says the rest
            log.warning("bridge.quote.failed", provider=provider.name, detail=str(away))
            return
        limit_s = self._limit_s(provider.name)
        await self._publish(provider.name, [_limited(offer, limit_s) for offer in sorted(offers, key=_order)])

    async def _publish(self, name: str, offers: list[Offer]) -> None:
        try:
            await self._streams.execute(name, PublishOffers(provider=name, offers=offers, at=self._clock()))
        except (Unavailable, Rejected) as away:
            log.warning("bridge.quote.not_published", provider=name, detail=str(away))


def _order(offer: Offer) -> tuple[str, int, str, bool]:
    return (offer.hardware, offer.gpu_count, offer.region or "", offer.spot)


def _limited(offer: Offer, limit_s: int | None) -> Offer:
    if limit_s is None or (offer.max_run_s is not None and offer.max_run_s <= limit_s):
        return offer
    return msgspec.structs.replace(offer, max_run_s=limit_s)


async def _pause(stop: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await stop.wait()
    except TimeoutError:
        return
