"""Prices, estimates, and the one place where money is rounded.

Money is whole micro-dollars. Machine time is metered by the second, and the amount of each attempt is
`seconds * price per hour / 3600`, rounded once, half up. Sums are sums of rounded amounts: nothing is rounded twice.
"""

import msgspec

SECONDS_PER_HOUR = 3600


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's machine costs, and how long a job is expected to hold it."""

    provider: str
    hardware: str
    price_micro_usd_per_hour: int
    base_seconds: int
    """Start, data and saving, whatever the number of steps."""
    seconds_per_step: int
    seconds_without_steps: int
    """Taken for a job that counts epochs: its steps are known only once its data is read."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a job is expected to take on a machine that nobody has measured yet."""

    base_seconds: int = 600
    seconds_per_step: int = 2
    seconds_without_steps: int = 7200


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """The offers this installation knows prices of, and the pace of all others."""

    offers: tuple[Offer, ...]
    elsewhere: Pace = Pace()

    def at(self, provider: str, price_micro_usd_per_hour: int | None) -> Offer | None:
        """The offer of a provider whose machine was quoted at this price; without one, the known offer, or None."""
        if price_micro_usd_per_hour is None:
            return self.offer(provider)
        pace = self.elsewhere
        return Offer(
            provider=provider,
            hardware="quoted",
            price_micro_usd_per_hour=price_micro_usd_per_hour,
            base_seconds=pace.base_seconds,
            seconds_per_step=pace.seconds_per_step,
            seconds_without_steps=pace.seconds_without_steps,
        )

    def offer(self, provider: str) -> Offer | None:
        """The provider's offer, or None: no price is known, and nothing may be spent there."""
        return next((offer for offer in self.offers if offer.provider == provider), None)

    def repriced(self, provider: str, price_micro_usd_per_hour: int | None) -> "Catalogue":
        """The same with another price for one provider; None changes nothing."""
        if price_micro_usd_per_hour is None:
            return self
        return Catalogue(
            elsewhere=self.elsewhere,
            offers=tuple(
                msgspec.structs.replace(offer, price_micro_usd_per_hour=price_micro_usd_per_hour)
                if offer.provider == provider
                else offer
                for offer in self.offers
            ),
        )


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is expected to cost, at the price it would be bound to."""

    seconds: int
    price_micro_usd_per_hour: int
    amount_micro_usd: int


def cost_micro_usd(seconds: int, price_micro_usd_per_hour: int) -> int:
    """What so many machine seconds cost, half a micro-dollar and more rounded up."""
    return (2 * seconds * price_micro_usd_per_hour + SECONDS_PER_HOUR) // (2 * SECONDS_PER_HOUR)


def estimate(offer: Offer, max_train_steps: int | None) -> Estimate:
    """The expected cost of a job at an offer; steps of None or 0 mean that the job counts epochs."""
    if max_train_steps is None or max_train_steps <= 0:
        seconds = offer.seconds_without_steps
    else:
        seconds = offer.base_seconds + offer.seconds_per_step * max_train_steps
    price = offer.price_micro_usd_per_hour
    return Estimate(seconds=seconds, price_micro_usd_per_hour=price, amount_micro_usd=cost_micro_usd(seconds, price))
