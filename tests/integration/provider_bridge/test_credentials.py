"""Credentials at rest: encrypted in the bridge's own table, whoever looks into it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from services.provider_bridge.outbound.credential_key import CredentialKey
from services.provider_bridge.outbound.credentials import Credentials
from shared.clock import utc_now
from shared.settings import Secret
from tests.support.log import LogDatabase

KEY, OTHER = CredentialKey("k" * 40), CredentialKey("o" * 40)
TOKEN = Secret("r8_at_rest")


@dataclass
class Bench:
    pool: asyncpg.Pool
    ours: Credentials

    async def stored(self) -> str:
        """Everything that stands in the table, as text."""
        return str(await self.pool.fetch("SELECT c::text FROM credentials c"))


@pytest.fixture
async def bench(log_database: LogDatabase) -> AsyncIterator[Bench]:
    async with asyncpg.create_pool(log_database.dsn("provider_bridge"), min_size=1, max_size=2) as pool:
        yield Bench(pool, Credentials(pool, KEY))


async def test_a_credential_comes_back_and_the_table_shows_nothing_of_it(bench: Bench) -> None:
    await bench.ours.save("replicate", None, "api_token", TOKEN, description="ours", at=utc_now())
    (one,) = await bench.ours.all()
    assert one.value is not None
    assert (one.value.reveal(), one.user_id, one.description) == (TOKEN.reveal(), None, "ours")
    assert TOKEN.reveal() not in await bench.stored()
    assert TOKEN.reveal().encode().hex() not in await bench.stored()
    assert TOKEN.reveal() not in repr(one)


async def test_a_newer_value_takes_the_place_of_the_same_name_and_owner_only(bench: Bench) -> None:
    first = await bench.ours.save("replicate", None, "api_token", Secret("old"), description="d", at=utc_now())
    await bench.ours.save("replicate", "ann", "api_token", Secret("ann's"), description=None, at=utc_now())
    again = await bench.ours.save("replicate", None, "api_token", TOKEN, description=None, at=utc_now())
    assert again == first
    values = {one.user_id: one.value.reveal() for one in await bench.ours.all() if one.value}
    assert values == {None: TOKEN.reveal(), "ann": "ann's"}
    assert (await bench.ours.all())[0].description == "d"
    assert await bench.ours.drop("replicate", "ann", "api_token")
    assert not await bench.ours.drop("replicate", "ann", "api_token")
    assert [one.user_id for one in await bench.ours.all()] == [None]


async def test_under_another_key_it_is_named_and_not_guessed(bench: Bench) -> None:
    await bench.ours.save("replicate", None, "api_token", TOKEN, description=None, at=utc_now())
    (one,) = await Credentials(bench.pool, OTHER).all()
    assert one.value is None
    assert one.problem is not None
    assert KEY.key_id in one.problem
    assert "TUNEWRIGHT_CREDENTIAL_KEY" in one.problem


async def test_a_row_that_was_moved_to_another_owner_opens_nothing(bench: Bench) -> None:
    await bench.ours.save("replicate", "ann", "api_token", TOKEN, description=None, at=utc_now())
    await bench.pool.execute("UPDATE credentials SET user_id = 'bob'")
    (one,) = await bench.ours.all()
    assert one.value is None


async def test_a_new_key_opens_older_rows_and_seals_them_anew(bench: Bench) -> None:
    """TUNEWRIGHT_CREDENTIAL_KEYS_BEFORE, until the older key is not needed any more."""
    await bench.ours.save("replicate", None, "api_token", TOKEN, description=None, at=utc_now())
    both = Credentials(bench.pool, CredentialKey("o" * 40, [KEY]))
    (before,) = await both.all()
    assert before.value is not None
    assert await both.reseal(before)
    (after,) = await Credentials(bench.pool, OTHER).all()
    assert after.value is not None
    assert (after.value.reveal(), after.updated_at) == (TOKEN.reveal(), before.updated_at)
    await both.save("replicate", None, "api_token", Secret("newer"), description=None, at=utc_now())
    assert not await both.reseal(before), "an older value never comes back"
