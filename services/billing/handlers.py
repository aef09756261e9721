"""Commands on accounts, and the metering that follows attempts and jobs. Coordinates only; `domain/` decides."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from services.billing.domain import metering_process
from services.billing.domain.account import (
    Account,
    AccountCommand,
    Meter,
    Refused,
    Reserve,
    Settle,
    Settled,
    Unopened,
    decide,
    evolve,
    job_money,
)
from services.billing.domain.metering_process import AttemptEvents
from services.billing.domain.pricing import Catalogue, estimate
from services.billing.projections import ledger
from services.billing.projections.ledger import QUERIES, QUERY_TIMEOUT_S
from shared.clock import Clock
from shared.contracts import catalogue
from shared.contracts.account import MeterUsage, ReadJobCost, ReserveFunds, SettleJob
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata, RecordedEvent
from shared.contracts.job import Event
from shared.contracts.provider import ProviderOrphanEnded
from shared.decider import Decider, Decision, metadata
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage
from shared.ids import derived_id
from shared.known_streams import KnownStreams
from shared.problems import Rejected

ACTOR = "system:billing"
ACCOUNT: Decider[Account, AccountCommand] = Decider(initial=Unopened(), evolve=evolve, decide=decide)


def month_of(at: datetime) -> str:
    """`2026-11`: the month whose account a reservation at this (UTC) moment goes to."""
    return f"{at:%Y-%m}"


def account_stream(owner: str, month: str) -> str:
    """The stream of an owner's ledger for a month."""
    return f"account-{derived_id(owner, month)}"


class Accounts:
    """Answers the commands on accounts and meters what attempts used."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        store: EventStore,
        clock: Clock,
        prices: Catalogue,
        floor_micro_usd: int | None,
    ) -> None:
        self._pool = pool
        self._store = store
        self._accounts = KnownStreams(store, ACCOUNT)
        self._clock = clock
        self._prices = prices
        self._floor_micro_usd = floor_micro_usd

    # ---- commands ----------------------------------------------------------------------------------------------------

    async def reserve(self, command: ReserveFunds, envelope: CommandEnvelope) -> CommandReply:
        """Sets the estimate aside, or refuses. A repeat gets the first answer, in whatever month it comes."""
        at = self._clock()
        stream, month = await self._claimed_stream(command, month_of(at))
        offer = self._prices.at(command.provider, command.price_micro_usd_per_hour)
        order = Reserve(
            job_id=command.job_id,
            owner=command.owner,
            month=month,
            provider=command.provider,
            floor_micro_usd=self._floor_micro_usd,
            estimate=estimate(offer, command.max_train_steps) if offer else None,
            at=at,
        )
        done = await self._execute(stream, command.job_id, order, metadata(envelope))
        money = job_money(done.state, command.job_id)
        if money is None or isinstance(money, Refused):
            raise Rejected("funds_refused", money.message if money else "Nothing was reserved.")
        data = {
            "reserved_micro_usd": money.reserved_micro_usd,
            "price_micro_usd_per_hour": money.price_micro_usd_per_hour,
        }
        return CommandReply(position=done.position, data=data)

    async def meter(self, command: MeterUsage, envelope: CommandEnvelope) -> CommandReply:
        """Books the machine seconds of an ended attempt, once."""
        position = await self._meter(command, self._clock(), metadata(envelope))
        return CommandReply(position=position)

    async def settle(self, command: SettleJob, envelope: CommandEnvelope) -> CommandReply:
        """Charges what was metered and releases the rest, once. Answers `{"captured_micro_usd"}`."""
        captured, position = await self._settle(command.job_id, self._clock(), metadata(envelope))
        return CommandReply(position=position, data={"captured_micro_usd": captured})

    async def read_job_cost(self, command: ReadJobCost, _envelope: CommandEnvelope) -> CommandReply:
        """What the job cost so far."""
        return CommandReply(data=await ledger.read_job_cost(self._pool, command.job_id))

    # ---- metering: facts of attempts and jobs ------------------------------------------------------------------------

    async def react(self, recorded: RecordedEvent) -> None:
        """Meters an attempt that ended, settles a job that ended. May be called any number of times for an event."""
        event = catalogue.decode(recorded)
        if event is None:
            return
        meta = EventMetadata(actor=ACTOR, causation_id=recorded.event_id, traceparent=recorded.meta.traceparent)
        if metering_process.ends_attempt(event):
            history = await self._store.read_stream(recorded.stream)
            for usage in metering_process.due_usage(_attempts(history)):
                await self._meter(usage, recorded.recorded_at, meta)
        elif isinstance(event, ProviderOrphanEnded):
            if (usage := metering_process.orphan_usage(event)) is not None:
                await self._meter(usage, recorded.recorded_at, meta)
        elif metering_process.ends_job(event):
            await self._settle(recorded.correlation_id, recorded.recorded_at, meta)

    async def _meter(self, usage: MeterUsage, at: datetime, meta: EventMetadata) -> int:
        stream = _account_in(await self._store.read_correlated(usage.job_id))
        if stream is None:
            raise Rejected("not_found", "Nothing was reserved for this job.", job_id=str(usage.job_id))
        done = await self._execute(stream, usage.job_id, _bound(usage, at), meta)
        return done.position

    async def _settle(self, job_id: UUID, at: datetime, meta: EventMetadata) -> tuple[int, int]:
        """Meters whatever ended and is not metered yet, then settles. Gives (captured micro-dollars, position)."""
        story = await self._store.read_correlated(job_id)
        stream = _account_in(story)
        if stream is None:
            return 0, 0
        for usage in metering_process.due_usage(_attempts(story)):
            await self._execute(stream, job_id, _bound(usage, at), meta)
        done = await self._execute(stream, job_id, Settle(job_id=job_id, at=at), meta)
        money = job_money(done.state, job_id)
        return (money.captured_micro_usd if isinstance(money, Settled) else 0), done.position

    async def _claimed_stream(self, command: ReserveFunds, month: str) -> tuple[str, str]:
        """The account that the job's money is on: where the log has it, else where it was first claimed."""
        known = _account_in(await self._store.read_correlated(command.job_id))
        if known is not None:
            return known, month
        wanted = (command.job_id, account_stream(command.owner, month), month)
        with unavailable_on_outage("claim_account"):
            await self._pool.execute(QUERIES.claim_account, *wanted, timeout=QUERY_TIMEOUT_S)
            claim = await self._pool.fetchrow(QUERIES.read_claim, command.job_id, timeout=QUERY_TIMEOUT_S)
        if claim is None:
            raise RuntimeError("a claim that was just made is gone")
        return claim["stream"], claim["month"]

    async def _execute(
        self, stream: str, job_id: UUID, command: AccountCommand, meta: EventMetadata
    ) -> Decision[Account]:
        return await self._accounts.execute(stream, command, meta=meta, correlation_id=job_id)


def _bound(usage: MeterUsage, at: datetime) -> Meter:
    return Meter(
        job_id=usage.job_id,
        attempt_id=usage.attempt_id,
        seconds=usage.seconds,
        price_micro_usd_per_hour=usage.price_micro_usd_per_hour,
        at=at,
    )


def _account_in(story: Sequence[RecordedEvent]) -> str | None:
    return next((recorded.stream for recorded in story if recorded.category == "account"), None)


def _attempts(story: Sequence[RecordedEvent]) -> list[AttemptEvents]:
    """The attempts of a story, each with its events in order."""
    streams: defaultdict[str, list[Event]] = defaultdict(list)
    for recorded in story:
        event = catalogue.decode(recorded) if recorded.category == "attempt" else None
        if event is not None:
            streams[recorded.stream].append(event)
    return [
        AttemptEvents(attempt_id=UUID(stream.partition("-")[2]), events=events) for stream, events in streams.items()
    ]
