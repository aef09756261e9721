"""Questions about money that write nothing: an account at any position of the log, and what usage would cost."""

import msgspec

from services.billing.domain.pricing import Catalogue, Offer, cost_micro_usd
from services.billing.domain.statement import statement
from services.billing.handlers import account_stream, month_of
from shared.clock import Clock
from shared.contracts import catalogue
from shared.contracts.account import ReadAccount
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.whatif import PriceList, PriceUsage
from shared.eventstore.api import ANY_POSITION, EventStore
from shared.problems import Rejected

MAX_JOBS = 10_000


class Statements:
    """Answers `ReadAccount` and `PriceUsage`."""

    def __init__(self, store: EventStore, clock: Clock, prices: Catalogue) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices

    async def read_account(self, command: ReadAccount, _envelope: CommandEnvelope) -> CommandReply:
        """The account, folded from its own events up to the position."""
        month = command.month or month_of(self._clock())
        last = command.up_to_position or ANY_POSITION
        history = await self._store.read_stream(account_stream(command.owner, month))
        known = (catalogue.decode(recorded) for recorded in history if recorded.global_position <= last)
        told = statement(event for event in known if event is not None)
        if told is None:
            detail = f"{command.owner} had no account in {month} at that point"
            raise Rejected("not_found", detail, owner=command.owner, month=month)
        page = told.jobs[command.offset : command.offset + min(command.limit, MAX_JOBS)]
        data = {**msgspec.to_builtins(told), "jobs": msgspec.to_builtins(page), "jobs_total": len(told.jobs)}
        return CommandReply(data={**data, "sum_micro_usd": sum(told.balances.values())})

    async def price_usage(self, command: PriceUsage, _envelope: CommandEnvelope) -> CommandReply:
        """What the usages would cost, by group: each attempt rounded as it would be billed."""
        prices = self._prices if command.prices is None else _catalogue(command.prices)
        groups: dict[str, int] = {}
        for usage in command.usages:
            price = usage.price_micro_usd_per_hour
            if price is None:
                price = _price_of(prices, usage.provider)
            amount = usage.count * cost_micro_usd(usage.seconds, price)
            groups[usage.group] = groups.get(usage.group, 0) + amount
        return CommandReply(data={"groups": groups})


def _price_of(prices: Catalogue, provider: str) -> int:
    offer = prices.offer(provider)
    if offer is None:
        known = ", ".join(sorted(offer.provider for offer in prices.offers)) or "none"
        detail = f"prices: provider {provider} was used and has no price in the list; it has: {known}"
        raise Rejected("validation_error", detail, field="prices")
    return offer.price_micro_usd_per_hour


def _catalogue(given: PriceList) -> Catalogue:
    return Catalogue(offers=tuple(msgspec.convert(msgspec.to_builtins(offer), Offer) for offer in given.offers))
