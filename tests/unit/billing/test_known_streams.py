"""Accounts kept between commands: what is remembered is never trusted."""

from uuid import UUID

from services.billing.domain.account import Account, AccountCommand, Open
from services.billing.handlers import ACCOUNT
from shared.contracts.account import FundsRefused
from shared.contracts.envelope import EventMetadata
from shared.eventstore.memory import MemoryEventStore
from shared.known_streams import KnownStreams
from tests.unit.billing.test_account_decider import SETTLE, a_reserve

META = EventMetadata()


async def reserve(accounts: KnownStreams[Account, AccountCommand], stream: str, number: int, amount: int) -> object:
    """The last event that a reservation of a job of that number led to, or None."""
    command = a_reserve(amount, job_id=UUID(int=number), floor=-100)
    done = await accounts.execute(stream, command, meta=META, correlation_id=command.job_id)
    return done.events[-1] if done.events else None


async def test_a_memory_that_another_replica_made_stale_decides_on_what_the_log_has() -> None:
    log = MemoryEventStore()
    one, other = KnownStreams(log, ACCOUNT), KnownStreams(log, ACCOUNT)
    await reserve(one, "account-a", 1, 60)
    await reserve(other, "account-a", 2, 40)
    assert isinstance(await reserve(one, "account-a", 3, 1), FundsRefused)


async def test_an_account_that_was_forgotten_is_read_again() -> None:
    log = MemoryEventStore()
    accounts = KnownStreams(log, ACCOUNT, kept=1)
    await reserve(accounts, "account-a", 1, 60)
    await reserve(accounts, "account-b", 2, 60)
    assert isinstance(await reserve(accounts, "account-a", 3, 41), FundsRefused)
    assert await reserve(accounts, "account-a", 1, 60) is None


async def test_the_state_after_a_command_includes_its_events() -> None:
    log = MemoryEventStore()
    accounts = KnownStreams(log, ACCOUNT)
    await reserve(accounts, "account-a", 1, 60)
    done = await accounts.execute("account-a", SETTLE, meta=META, correlation_id=UUID(int=1))
    assert isinstance(done.state, Open)
    assert done.state.available_micro_usd == 0
