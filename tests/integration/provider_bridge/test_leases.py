"""One owner at a time, by the clock of Postgres, in the same commit as the history says it."""

import asyncio
from pathlib import Path

import pytest

from services.provider_bridge.domain.attempt_commands import IntendStart, RecordAccepted
from services.provider_bridge.outbound.leases import LeaseLost
from shared.clock import utc_now
from shared.contracts.attempt import AttemptLeased, AttemptStartIntended
from shared.problems import Rejected
from tests.integration.provider_bridge.harness import a_bridge, expire
from tests.support.log import LogDatabase


def intend(epoch: int, digest: str = "a") -> IntendStart:
    return IntendStart(epoch=epoch, at=utc_now(), token_sha256=digest * 64)


async def test_of_two_bridges_one_gets_the_lease(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.request()
        state = await a.leases.load(attempt)
        epochs = await asyncio.gather(a.leases.hold(attempt, state, a.site), b.leases.hold(attempt, state, b.site))
        assert sorted(epochs, key=str) == [1, None]
        leased = [event for event in await a.history(attempt) if isinstance(event, AttemptLeased)]
        assert [event.epoch for event in leased] == [1]


async def test_taking_over_an_expired_lease_raises_the_epoch_and_is_in_the_history(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await expire(log_database, attempt)
        assert await b.leases.hold(attempt, await b.leases.load(attempt), b.site) == 2
        leased = [event for event in await a.history(attempt) if isinstance(event, AttemptLeased)]
        assert [(event.epoch, event.owner) for event in leased] == [(1, "first"), (2, "second")]


async def test_a_lease_that_has_expired_cannot_append_even_if_nobody_took_it(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as a:
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await expire(log_database, attempt)
        with pytest.raises(LeaseLost):
            await a.leases.append(attempt, intend(1))
        with pytest.raises(LeaseLost):
            await a.leases.check(attempt, 1, for_s=0)
        assert not any(isinstance(event, AttemptStartIntended) for event in await a.history(attempt))


async def test_an_expired_lease_is_not_renewed_but_taken_anew(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as a:
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await a.leases.renew()
        assert a.leases.held == {attempt}
        await expire(log_database, attempt)
        await a.leases.renew()
        assert a.leases.held == frozenset()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 2


async def test_the_paused_owner_of_an_older_epoch_is_refused_by_lease_and_by_rule(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.request()
        await a.intend(attempt)
        await expire(log_database, attempt)
        await b.intend(attempt, "b" * 64)
        before = await b.history(attempt)
        with pytest.raises(Rejected) as refused:
            await a.leases.append(attempt, RecordAccepted(epoch=1, at=utc_now(), provider_ref="r"))
        assert refused.value.code == "stale_epoch"
        with pytest.raises(LeaseLost):
            await a.leases.check(attempt, 1, for_s=0)
        assert await b.history(attempt) == before


async def test_a_restarted_bridge_with_its_old_name_takes_over_at_once(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.request()
        assert await before.leases.hold(attempt, await before.leases.load(attempt), before.site) == 1
    async with a_bridge(log_database, tmp_path) as after:
        assert await after.leases.hold(attempt, await after.leases.load(attempt), after.site) == 2


async def test_released_leases_need_not_be_waited_for(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await a.leases.release()
        assert await b.leases.hold(attempt, await b.leases.load(attempt), b.site) == 2


async def test_a_run_that_only_one_site_can_reach_is_never_taken_by_another(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    async with (
        a_bridge(log_database, tmp_path) as a,
        a_bridge(log_database, tmp_path, owner="second", state_dir=elsewhere) as b,
    ):
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await expire(log_database, attempt)
        assert a.site != b.site
        assert await b.leases.hold(attempt, await b.leases.load(attempt), b.site) is None


async def test_epochs_rise_above_the_history_even_when_the_lease_rows_are_lost(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.request()
        assert await a.leases.hold(attempt, await a.leases.load(attempt), a.site) == 1
        await a.leases.drop(attempt)
        assert await b.leases.hold(attempt, await b.leases.load(attempt), b.site) == 2
