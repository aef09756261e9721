"""One seeded run: a bridge, a vendor that misbehaves, and a clock that jumps.

The bridge's own parts (driver, leases, sweeper, breaker) work on a real Postgres and talk to the simulator by the real
adapter over real sockets. Time is the seed's: it passes only between steps. What a trainer would say is said here,
under the epoch that stands in its run's label; the gateway would refuse a stale one, and so does this.
"""

import random
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.attempt_stream import ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import NoteWebhook
from services.provider_bridge.domain.attempt_states import (
    Absent,
    AttemptState,
    Ended,
    Forestalled,
    Requested,
    run_of,
)
from services.provider_bridge.domain.provider import ProviderCommand, ProviderState
from services.provider_bridge.driving import Driver, DrivingOptions
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.outbound.directory import FixedProviders
from services.provider_bridge.outbound.guarded import GuardedProvider
from services.provider_bridge.outbound.leases import LeaseLost, Leases
from services.provider_bridge.outbound.ports import StaleEpoch, StartOrder, Tag
from services.provider_bridge.provider_stream import ProviderStreams
from services.provider_bridge.sweeping import Sweeper
from shared.contracts.attempt import CancelAttempt, ReportMilestone, RequestAttempt
from shared.contracts.envelope import EventMetadata
from shared.contracts.offers import Offer
from shared.decider import Decision, execute, fold
from shared.eventstore.api import EventStore
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.problems import Rejected, Unavailable
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.integration.provider_bridge.harness import envelope
from tests.provider_faults.vendors import Vendor
from tests.simulators.faults import BillLine, Fault, Moment

INSTALLATION = "0a1b2c3d"
LEASE_S = 600.0
FAULTS: tuple[Fault, ...] = (
    "429",
    "429 with Retry-After",
    "500 before",
    "500 after",
    "html",
    "html after",
    "reset before",
    "reset",
    "lost reply",
    "hang",
    "hang after",
)
QUICK: tuple[Fault, ...] = tuple(fault for fault in FAULTS if not fault.startswith("hang"))


class Plan(msgspec.Struct, kw_only=True):
    """What the seed did to one attempt: an end that these do not explain is our fault."""

    attempt_id: UUID
    offer: Offer | None
    cancelled: bool = False
    vanished: bool = False
    lacked: bool = False
    begun: int = 0
    """How many of its runs have left the vendor's queue."""
    done: set[str] = set()
    """Refs of runs whose trainer has ended."""


class StreamsOfSeed(ProviderStreams):
    """Each seed has providers of its own, though all seeds share a log."""

    def __init__(self, store: EventStore, seed: int) -> None:
        super().__init__(store)
        self._seed = seed

    async def load(self, name: str) -> ProviderState:
        return await super().load(f"{name}/{self._seed}")

    async def execute(
        self, name: str, command: ProviderCommand, *, meta: EventMetadata | None = None, job_id: UUID | None = None
    ) -> Decision[ProviderState]:
        return await super().execute(f"{name}/{self._seed}", command, meta=meta, job_id=job_id)


class World:
    """The bridge and the vendor of one seed."""

    def __init__(self, seed: int, pool: asyncpg.Pool, vendor: Vendor, moment: Moment) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.moment = moment
        self.vendor = vendor
        self.store = PostgresEventStore(pool)
        self._pool = pool
        self._owner = f"seed/{seed}"
        self.plans: dict[UUID, Plan] = {}
        self.lives = 0
        self.notes: list[str] = []
        self.reborn()

    # ---- the bridge --------------------------------------------------------------------------------------------------

    def reborn(self) -> None:
        """The bridge's process ends and the next one begins, knowing what is in the log and at the vendor."""
        self.lives += 1
        streams = self.streams = StreamsOfSeed(self.store, self.seed)
        inner = self.vendor.connect(INSTALLATION)
        self.provider = GuardedProvider(inner, streams, self.moment)
        directory = FixedProviders([self.provider])
        self.leases = Leases(self._pool, self.store, self.moment, owner=self._owner, lease_s=LEASE_S)
        options = DrivingOptions(gateway_url="http://127.0.0.1:9", cancel_grace_s=1.0, report_grace_s=0.0, linger_s=5.0)
        self.driver = Driver(self.leases, directory, self.moment, options)
        self.sweeper = Sweeper(self.leases, self.store, directory, self.moment, cancel_grace_s=1.0, streams=streams)
        self.handlers = AttemptHandlers(self.store, directory, self.moment, lambda _: None)

    async def request(self, offer: Offer | None) -> UUID:
        """One more attempt."""
        attempt_id = new_id()
        command = RequestAttempt(
            attempt_id=attempt_id,
            job_id=new_id(),
            attempt_number=1,
            provider=self.provider.name,
            config={"--max_train_steps": 100},
            dataloader=[],
            datasets=[],
            resume=None,
            price_micro_usd_per_hour=0,
            offer=offer,
        )
        await self.handlers.request(command, envelope(command))
        self.plans[attempt_id] = Plan(attempt_id=attempt_id, offer=offer)
        return attempt_id

    async def drive(self) -> None:
        """One look at each attempt, as the reconciler does."""
        for attempt_id in self.plans:
            try:
                await self.driver.drive(attempt_id)
            except (LeaseLost, StaleEpoch):
                self.leases.forget(attempt_id)
            except (Unavailable, Rejected) as refusal:
                self.note(f"put off: {refusal}")

    async def sweep(self) -> None:
        """One cycle of the sweep."""
        await self.sweeper.sweep()

    async def state(self, attempt_id: UUID) -> AttemptState:
        """The attempt as the log has it."""
        return fold(ATTEMPT, await self.store.read_stream(attempt_stream(attempt_id)))

    async def cancel(self, attempt_id: UUID) -> None:
        """Somebody wants it to end."""
        command = CancelAttempt(attempt_id=attempt_id, reason="seed")
        await self.handlers.cancel(command, envelope(command))
        self.plans[attempt_id].cancelled = True

    async def start_late(self, attempt_id: UUID, offer: Offer | None) -> None:
        """What a bridge of epoch 0 had asked for, long ago."""
        spec = stand_in.a_spec(attempt_id)
        order = StartOrder(tag=Tag(attempt_id=attempt_id, epoch=0), spec=spec, token="of epoch 0", offer=offer)
        await self.vendor.connect(INSTALLATION).submit(order)

    # ---- the vendor's side -------------------------------------------------------------------------------------------

    def lines(self, attempt_id: UUID) -> list[BillLine]:
        """Every run that was ever started for the attempt."""
        return [line for line in self.vendor.bill.lines if attempt_id.hex in line.label]

    def alive(self, attempt_id: UUID) -> list[BillLine]:
        """Those that cost money now."""
        return [line for line in self.lines(attempt_id) if line.ended is None]

    async def is_worth_something(self, line: BillLine) -> bool:
        """Whether the trainer of this run would be believed: its epoch is that of the newest intent."""
        tag = Tag.parse(line.label, INSTALLATION)
        if tag is None:
            return False
        state = await self.state(tag.attempt_id)
        if isinstance(state, Absent | Forestalled) or isinstance(run_of(state), Requested):
            return False
        return run_of(state).intent_epoch == tag.epoch

    async def is_heard(self) -> bool:
        """Whether the bridge would ask the vendor now: its breaker is not open."""
        return (await self.streams.load(self.provider.name)).breaker.state != "open"

    async def report(self, attempt_id: UUID, type_: str, data: dict[str, Any]) -> None:
        """What a trainer says, as the gateway passes it on."""
        command = ReportMilestone(attempt_id=attempt_id, seq=1, report_type=type_, data=data, at=self.moment())
        try:
            await self.handlers.report(command, envelope(command))
        except Rejected as refusal:
            self.note(f"report refused: {refusal}")

    async def hook(self, attempt_id: UUID, word: str) -> None:
        """A webhook was verified, perhaps the second time."""
        note = NoteWebhook(webhook_id=f"{attempt_id}-{word}", word=word, at=self.moment())
        try:
            await execute(
                self.store,
                ATTEMPT,
                attempt_stream(attempt_id),
                note,
                meta=EventMetadata(actor="system:provider_bridge"),
                correlation_id=attempt_id,
            )
        except Rejected as refusal:
            self.note(f"hook refused: {refusal}")

    def note(self, what: str) -> None:
        """For whoever reads a seed that failed."""
        self.notes.append(f"{self.moment():%H:%M:%S} {what}")

    async def all_over(self) -> bool:
        """Whether every attempt has ended and owes nothing."""
        for attempt_id in self.plans:
            state = await self.state(attempt_id)
            if isinstance(state, Ended) and not state.owes_release:
                continue
            return False
        return True

    async def close(self) -> None:
        """Gives back what the seed held."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.store.close)
            for provider in self.vendor.connected:
                stack.push_async_callback(provider.close)
