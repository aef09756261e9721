"""Keeps what providers offer in the log: the scheduler places by it, billing sets money aside by it."""

import asyncio

import structlog

from services.provider_bridge.domain.provider import PublishOffers
from services.provider_bridge.outbound.ports import CredentialRefused, Provider, Providers
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.contracts.offers import Offer
from shared.problems import Rejected, Unavailable

log = structlog.stdlib.get_logger()


class Quoter:
    """Asks every provider that is set up, and writes down what has changed."""

    def __init__(self, providers: Providers, streams: ProviderStreams, clock: Clock, *, interval_s: float) -> None:
        self._providers = providers
        self._streams = streams
        self._clock = clock
        self._interval_s = interval_s
        self._asked: set[str] = set()
        self._wake = asyncio.Event()

    def nudge(self) -> None:
        """Asks again at once: a provider was set up, or something of it was changed."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set."""
        while not stop.is_set():
            self._wake.clear()
            await self.round()
            stopping, waking = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({stopping, waking}, timeout=self._interval_s, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            waking.cancel()

    async def round(self) -> None:
        """One look at each; of a provider that is no longer set up the offers are withdrawn."""
        by_name = {provider.name: provider for provider in reversed(self._providers.known())}
        for name in sorted(self._asked - by_name.keys()):
            await self._publish(name, [])
        await asyncio.gather(*(self._ask(provider) for provider in by_name.values()))
        self._asked = set(by_name)

    async def _ask(self, provider: Provider) -> None:
        try:
            offers = await provider.quote()
        except (Unavailable, CredentialRefused) as away:  # what it offered last stays, and its breaker says the rest
            log.warning("bridge.quote.failed", provider=provider.name, detail=str(away))
            return
        await self._publish(provider.name, sorted(offers, key=_order))

    async def _publish(self, name: str, offers: list[Offer]) -> None:
        try:
            await self._streams.execute(name, PublishOffers(provider=name, offers=offers, at=self._clock()))
        except (Unavailable, Rejected) as away:
            log.warning("bridge.quote.not_published", provider=name, detail=str(away))


def _order(offer: Offer) -> tuple[str, int, str, bool]:
    return (offer.hardware, offer.gpu_count, offer.region or "", offer.spot)
