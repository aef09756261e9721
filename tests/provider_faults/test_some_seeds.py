"""A few seeds of every vendor in each build; `just fault-providers` plays as many as one likes."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.provider_faults.story import play
from tests.provider_faults.vendors import VENDORS
from tests.support.log import LogDatabase

KEPT = (1293, 1214, 6084)
"""Late starts at RunPod, Lambda and Hugging Face, with restarts and storms around them."""
FRESH = tuple(range(700, 700 + len(VENDORS)))


@pytest.fixture
async def pool(log_database: LogDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(log_database.dsn("provider_bridge"), min_size=1, max_size=8) as opened:
        yield opened


@pytest.mark.parametrize("seed", [*KEPT, *FRESH])
async def test_after_the_storm_no_machine_is_nobodys_and_the_ledger_is_the_vendors_bill(
    seed: int, pool: asyncpg.Pool
) -> None:
    verdict = await play(seed, pool)
    assert verdict.violations == [], "\n".join([f"python -m tests.provider_faults --seed {seed}", *verdict.notes])


def test_the_fresh_seeds_play_every_vendor_once() -> None:
    assert {seed % len(VENDORS) for seed in FRESH} == set(range(len(VENDORS)))
