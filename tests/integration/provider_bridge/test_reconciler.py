"""One attempt's trouble is its own, and costs the log nothing."""

from pathlib import Path

from shared.contracts.attempt import AttemptAccepted, AttemptCancelled, AttemptLeased
from tests.integration.provider_bridge.harness import Bridge, a_bridge, expire
from tests.support.log import LogDatabase


async def leases_of(bridge: Bridge, attempt: object) -> int:
    return await bridge.pool.fetchval("SELECT count(*) FROM leases WHERE attempt_id = $1", attempt)


async def test_an_attempt_in_trouble_does_not_hold_up_others_and_goes_on_when_the_trouble_is_over(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        troubled, healthy = await bridge.request(), await bridge.request()
        obstacle = tmp_path / "state" / "attempts" / str(troubled)
        obstacle.write_text("a file where the attempt's folder should be")
        for _ in range(3):
            bridge.reconciler.nudge(troubled)
            await bridge.reconciler.tick()
        await bridge.until_started(healthy)
        history = await bridge.history(troubled)
        assert sum(isinstance(event, AttemptLeased) for event in history) == 1, "retries add nothing to the history"
        obstacle.unlink()
        bridge.reconciler.nudge(troubled)
        await bridge.reconciler.tick()
        assert isinstance((await bridge.history(troubled))[-1], AttemptAccepted)


async def test_an_expired_lease_is_found_even_where_the_read_model_shows_no_attempt(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.started()
        await expire(log_database, attempt)
    async with a_bridge(log_database, tmp_path, owner="second") as after:
        assert await after.pool.fetchval("SELECT count(*) FROM attempts") == 0
        await after.reconciler.tick()
        assert after.leases.held == {attempt}


async def test_a_lease_that_another_bridge_holds_is_not_touched(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempt = await a.started()
        b.reconciler.nudge(attempt)
        await b.reconciler.tick()
        assert b.leases.held == frozenset()
        assert sum(isinstance(event, AttemptLeased) for event in await a.history(attempt)) == 1


async def test_whichever_bridge_hears_of_a_cancel_the_owner_carries_it_out_and_the_lease_goes(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as owner, a_bridge(log_database, tmp_path, owner="second") as other:
        attempt = await owner.started()
        await other.cancel(attempt)
        await other.reconciler.tick()
        await owner.until(attempt, AttemptCancelled)
        assert await leases_of(owner, attempt) == 0
