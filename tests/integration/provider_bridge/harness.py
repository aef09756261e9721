"""A bridge without its process: leases, driver and reconciler on a real log, with a stand-in for the trainer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.attempt_stream import attempt_stream
from services.provider_bridge.domain.attempt_commands import IntendStart
from services.provider_bridge.driving import Driver, DrivingOptions
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.inbound.reconciler import Pace, Reconciler
from services.provider_bridge.outbound.directory import FixedProviders
from services.provider_bridge.outbound.leases import Leases
from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.ports import Tag
from services.provider_bridge.sweeping import Sweeper
from shared.clock import Clock, utc_now
from shared.contracts import catalogue
from shared.contracts.attempt import CancelAttempt, ReportMilestone, RequestAttempt
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.job import Command, Event
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.support.log import LogDatabase

GATEWAY_URL = "http://127.0.0.1:9"


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """One bridge of a test; others may share its log and its state folder."""

    pool: asyncpg.Pool
    store: PostgresEventStore
    state_dir: Path
    provider: LocalProvider
    leases: Leases
    driver: Driver
    reconciler: Reconciler
    sweeper: Sweeper
    handlers: AttemptHandlers

    async def request(self, *, attempt_id: UUID | None = None, job_id: UUID | None = None, **plan: Any) -> UUID:
        """A requested attempt whose stand-in does as `plan` says."""
        attempt_id = attempt_id or new_id()
        command = RequestAttempt(
            attempt_id=attempt_id,
            job_id=job_id or new_id(),
            attempt_number=1,
            provider="local",
            config=plan,
            dataloader=[],
            datasets=[],
            resume=None,
            price_micro_usd_per_hour=0,
        )
        await self.handlers.request(command, envelope(command))
        return attempt_id

    async def started(self, **plan: Any) -> UUID:
        """An attempt whose stand-in trainer runs."""
        attempt_id = await self.request(**plan)
        await self.driver.drive(attempt_id)
        await self.until_started(attempt_id)
        return attempt_id

    async def cancel(self, attempt_id: UUID) -> None:
        """Asks the attempt to end."""
        command = CancelAttempt(attempt_id=attempt_id, reason="test")
        await self.handlers.cancel(command, envelope(command))

    async def report(self, attempt_id: UUID, type_: str, data: dict[str, Any] | None = None) -> bool:
        """A trainer's milestone; whether it was late."""
        command = ReportMilestone(attempt_id=attempt_id, seq=1, report_type=type_, data=data or {}, at=utc_now())
        reply = await self.handlers.report(command, envelope(command))
        return bool(reply.data["late"])

    async def history(self, attempt_id: UUID) -> list[Event]:
        """The attempt's events."""
        recorded = await self.store.read_stream(attempt_stream(attempt_id))
        return [event for row in recorded if (event := catalogue.decode(row)) is not None]

    async def until(self, attempt_id: UUID, kind: type[Event]) -> Any:
        """Drives the attempt until its history holds such an event, and gives the event."""

        async def reached() -> Event | None:
            await self.driver.drive(attempt_id)
            return next((event for event in await self.history(attempt_id) if isinstance(event, kind)), None)

        return await stand_in.eventually(kind.__name__, reached)

    async def until_started(self, attempt_id: UUID) -> dict[str, Any]:
        """What the one trainer process wrote down of itself."""

        async def reached() -> list[dict[str, Any]]:
            return self.starts(attempt_id)

        [start] = await stand_in.eventually("the trainer runs", reached)
        return start

    def starts(self, attempt_id: UUID) -> list[dict[str, Any]]:
        """Every trainer process that was ever started for the attempt."""
        return stand_in.starts(self.state_dir, attempt_id)

    async def intend(self, attempt_id: UUID, token_sha256: str = "a" * 64) -> int:
        """Leases the attempt and records an intent, as a bridge does that dies before it acts. Gives the epoch."""
        epoch = await self.leases.hold(attempt_id, await self.leases.load(attempt_id), self.site)
        assert epoch is not None
        await self.provider.find(Tag(attempt_id=attempt_id, epoch=epoch))
        await self.leases.append(attempt_id, IntendStart(epoch=epoch, at=utc_now(), token_sha256=token_sha256))
        return epoch

    @property
    def site(self) -> str | None:
        """Where the local provider's runs can be reached from."""
        return self.provider.capabilities.site


def envelope(command: Command) -> CommandEnvelope:
    """What the command server would hand over."""
    job_id = (command.job_id if isinstance(command, RequestAttempt | CancelAttempt) else None) or new_id()
    return CommandEnvelope(command_id=new_id(), correlation_id=job_id, payload=msgspec.Raw(b"{}"))


@asynccontextmanager
async def a_bridge(
    database: LogDatabase,
    folder: Path,
    *,
    owner: str = "first",
    clock: Clock = utc_now,
    lease_s: float = 60,
    trainer_python: Path | None = None,
    state_dir: Path | None = None,
    cancel_grace_s: float = 0.3,
) -> AsyncGenerator[Bridge]:
    """A bridge that does only what the test asks; its runs live on after the block."""
    options = LocalOptions(
        state_dir=state_dir or folder / "state",
        trainer_python=trainer_python or stand_in.install(folder),
        trainer_dir=folder,
        environ={"PATH": "/usr/bin:/bin", "DATABASE_URL": "secret", "HF_HOME": "/hub"},
    )
    provider = LocalProvider(options)
    providers = FixedProviders([provider])
    driving = DrivingOptions(gateway_url=GATEWAY_URL, cancel_grace_s=cancel_grace_s, report_grace_s=0)
    async with asyncpg.create_pool(database.dsn("provider_bridge"), min_size=1, max_size=8) as pool:
        store = PostgresEventStore(pool)
        leases = Leases(pool, store, clock, owner=owner, lease_s=lease_s)
        driver = Driver(leases, providers, clock, driving)
        sweeper = Sweeper(leases, store, providers, clock, cancel_grace_s=0.3)
        reconciler = Reconciler(driver, leases, sweeper, sites=[provider.capabilities.site or ""], pace=Pace())
        yield Bridge(
            pool=pool,
            store=store,
            state_dir=options.state_dir,
            provider=provider,
            leases=leases,
            driver=driver,
            reconciler=reconciler,
            sweeper=sweeper,
            handlers=AttemptHandlers(store, providers, clock, reconciler.nudge),
        )
        await store.close()


async def expire(database: LogDatabase, attempt_id: UUID) -> None:
    """The lease runs out, as it does when its bridge is paused: nobody renews it."""
    connection = await asyncpg.connect(database.superuser_dsn)
    try:
        done = await connection.execute(
            "UPDATE provider_bridge.leases SET lease_until = clock_timestamp() - interval '1 second'"
            " WHERE attempt_id = $1",
            attempt_id,
        )
    finally:
        await connection.close()
    assert done == "UPDATE 1"
