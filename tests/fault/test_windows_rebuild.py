"""A service is killed while it rebuilds its read models: a reader sees the old rows or the new ones, never half."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from deploy.embedded.children import REPOSITORY
from deploy.embedded.nats import EmbeddedNats
from shared.contracts.account import FundsReserved, Posting
from shared.contracts.admin import Ping, RebuildProjections
from shared.contracts.envelope import CommandReply
from shared.messaging.commands import CommandSender
from shared.problems import Unavailable
from shared.projection import hash_tables
from tests.support import bulk_log
from tests.support.bulk_log import PastEvent
from tests.support.bus import ServiceSettings, connected_bus
from tests.support.log import LogDatabase, an_account_event
from tests.support.waiting import eventually

EVENTS = 4000
KILLS = int(os.environ.get("FAULT_REBUILD_KILLS", "2"))
TABLES = ("accounts", "ledger_entries", "balances", "job_costs")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
_REFOLDING = """
SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE c.relname = 'ledger_entries' AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""The rebuild holds this lock from its first deleted row to its commit; nobody else writes the ledger here."""


class Billing:
    """The real service as a process, and a connection that looks at its tables."""

    def __init__(self, environment: dict[str, str], server: EmbeddedNats, reader: asyncpg.Connection) -> None:
        self._environment = environment
        self._server = server
        self.reader = reader
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Returns when it answers and has handled the whole log."""
        self._spawn()
        await eventually(self._is_level, 120)

    def _spawn(self) -> None:
        environment = {"PATH": os.environ["PATH"], **self._environment}
        command = [sys.executable, "-m", "services.billing"]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=sys.stderr)

    async def kill(self) -> None:
        """SIGKILL; its session is over when this returns."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        await eventually(self._nobody_refolds)

    async def ask(self, command: Ping | RebuildProjections) -> CommandReply:
        """What it answers."""
        async with connected_bus(self._server, "gateway") as bus:
            return await CommandSender(bus).send("billing", command, correlation_id=uuid4(), timeout_s=120)

    async def rows(self) -> tuple[int, str]:
        """How many rows the ledger has, and a digest over them."""
        async with self.reader.transaction(isolation="repeatable_read", readonly=True):
            return await hash_tables(self.reader, TABLES)

    async def refolds(self) -> bool:
        """Whether a rebuild is under way."""
        return bool(await self.reader.fetchval(_REFOLDING))

    async def stopped_in_a_rebuild(self, tasks: asyncio.TaskGroup) -> asyncio.Task[CommandReply]:
        """Asks for a rebuild and gives the question, with the process stopped by SIGSTOP while it has its rows deleted.

        A rebuild that ends before this busy machine has looked is asked for again.
        """
        assert self.process is not None
        while True:
            asking = tasks.create_task(self.ask(RebuildProjections()))
            await eventually(lambda asking=asking: self._refolds_or_has_ended(asking))
            self.process.send_signal(signal.SIGSTOP)
            if await self.refolds() and not asking.done():
                return asking
            self.process.send_signal(signal.SIGCONT)
            await asking

    async def _refolds_or_has_ended(self, asking: asyncio.Task[CommandReply]) -> bool:
        return asking.done() or await self.refolds()

    async def _nobody_refolds(self) -> bool:
        return not await self.refolds()

    async def _is_level(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None
        try:
            lag = (await self.ask(Ping())).data["lag"]
        except Unavailable:
            return False
        return lag["billing__ledger"] == 0


def _past() -> list[PastEvent]:
    stream, opened = f"account-{uuid4()}", an_account_event()
    events = [PastEvent(stream=stream, event=opened, correlation_id=uuid4(), recorded_at=NOON)]
    for number in range(EVENTS):
        job_id = UUID(int=number + 1)
        moves = {"available": -number, "reserved": number}
        postings = [Posting(ledger_account=name, amount_micro_usd=amount) for name, amount in moves.items()]
        reserved = FundsReserved(
            job_id=job_id, amount_micro_usd=number, price_micro_usd_per_hour=1, postings=postings, reserved_at=NOON
        )
        events.append(PastEvent(stream=stream, event=reserved, correlation_id=job_id, recorded_at=NOON))
    return events


@pytest.fixture
async def billing(
    log_database: LogDatabase, bus_server: EmbeddedNats, service_settings: ServiceSettings
) -> AsyncIterator[Billing]:
    await bulk_log.write(log_database.superuser_dsn, _past())
    reader = await asyncpg.connect(log_database.dsn("billing"))
    made = Billing(dict(service_settings("billing")), bus_server, reader)
    await made.start()
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait(10)
    await reader.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_during_a_rebuild_the_rows_are_the_old_ones_and_the_next_rebuild_is_equal(
    billing: Billing,
) -> None:
    whole = await billing.rows()
    assert whole[0] > 3 * EVENTS
    for _ in range(KILLS):
        async with asyncio.TaskGroup() as tasks:
            asking = await billing.stopped_in_a_rebuild(tasks)
            assert await billing.rows() == whole, "a reader saw a half of the rows during the rebuild"
            await billing.kill()
            assert not asking.done(), "it was answered, so it was not killed in the middle"
            asking.cancel()
        assert await billing.rows() == whole
        await billing.start()
    report = (await billing.ask(RebuildProjections())).data["projections"]
    assert [(one["name"], one["equal"], one["rows"]) for one in report] == [("ledger", True, whole[0])]
    assert await billing.rows() == whole
