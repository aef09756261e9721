"""One attempt from its request to its end: started once, watched, ended when asked, and told apart however it ends."""

import asyncio
import hashlib
import json
import signal
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from services.provider_bridge.attempt_stream import attempt_stream
from services.provider_bridge.outbound.ports import StaleEpoch, StartOrder, Tag
from shared.clock import utc_now
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptCancelRequested,
    AttemptFailed,
    AttemptLost,
    AttemptRequested,
    AttemptStarted,
    AttemptStartIntended,
    AttemptSucceeded,
    CancelAttempt,
    RequestAttempt,
)
from shared.contracts.job import Event, JobCancelRequested
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.problems import Rejected
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.integration.provider_bridge.harness import GATEWAY_URL, a_bridge, envelope, expire
from tests.support.log import LogDatabase, StoreFor, an_append
from tests.support.waiting import eventually


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def a_tag(attempt_id: UUID, epoch: int) -> Tag:
    return Tag(attempt_id=attempt_id, epoch=epoch)


def newest_digest(history: list[Event]) -> str:
    return [event.token_sha256 for event in history if isinstance(event, AttemptStartIntended)][-1]


async def test_a_requested_attempt_is_started_and_its_history_says_how(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        kinds = [type(event).__name__ for event in await bridge.history(attempt)]
        assert kinds == ["AttemptRequested", "AttemptLeased", "AttemptStartIntended", "AttemptAccepted"]


async def test_the_trainer_gets_its_spec_and_token_and_nothing_of_the_bridges_environment(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started(note="x")
        [start] = bridge.starts(attempt)
        [request] = [event for event in await bridge.history(attempt) if isinstance(event, AttemptRequested)]
        assert digest(start["token"]) == newest_digest(await bridge.history(attempt))
        assert start["spec_mode"] == "0o600"
        assert start["cwd"] == str(tmp_path)
        assert start["env"]["HF_HOME"] == "/hub"
        assert "DATABASE_URL" not in start["env"]
        assert not any(start["token"] in word for word in start["argv"])
        folder = tmp_path / "state" / "attempts" / str(attempt)
        assert start["argv"][start["argv"].index("--spec") + 1] == str(folder / "start-1" / "spec.json")
        spec = json.loads((folder / "start-1" / "spec.json").read_bytes())
        assert (spec["attempt_id"], spec["job_id"]) == (str(attempt), str(request.job_id))
        assert (spec["gateway_url"], spec["output_prefix"]) == (GATEWAY_URL, str(request.job_id))
        assert set(spec) == set(RunSpec.__struct_fields__)
        assert folder.stat().st_mode & 0o777 == 0o700


async def test_hello_done_and_exit_make_a_success_and_the_lease_goes(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        assert not await bridge.report(attempt, "hello", {"device": "cpu"})
        assert not await bridge.report(attempt, "done", {"steps": 3, "final_loss": 0.1})
        stand_in.finish(bridge.state_dir, attempt)
        await bridge.driver.drive(attempt)
        kinds = [type(event) for event in await bridge.history(attempt)]
        assert kinds[-2:] == [AttemptStarted, AttemptSucceeded]
        assert await bridge.pool.fetchval("SELECT count(*) FROM leases") == 0
        assert await bridge.report(attempt, "failed", {"kind": "internal"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, "internal"), (1, "internal"), (64, "bad_config"), (69, "unreachable"), (75, "preempted"), (77, "superseded")],
)
async def test_an_exit_without_a_report_is_told_by_its_code(
    log_database: LogDatabase, tmp_path: Path, code: int, kind: str
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.request(code=code, say="Traceback: the reason")
        failed = await bridge.until(attempt, AttemptFailed)
        assert (failed.kind, failed.exit_code) == (kind, code)
        assert "Traceback: the reason" in failed.message


async def test_cancel_stops_the_trainer_gracefully(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path, cancel_grace_s=60) as bridge:
        attempt = await bridge.started()
        await bridge.report(attempt, "hello")
        await bridge.cancel(attempt)
        cancelled = await bridge.until(attempt, AttemptCancelled)
        assert cancelled.billed_seconds >= 0
        [start] = bridge.starts(attempt)
        assert not stand_in.is_running(start["pid"])
        view = await bridge.provider.fetch(str(attempt))
        assert view is not None
        assert view.exit_code == 75


async def test_a_trainer_that_ignores_the_cancel_is_killed_after_its_grace(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started(stubborn=True)
        await bridge.cancel(attempt)
        await bridge.until(attempt, AttemptCancelled)
        view = await bridge.provider.fetch(str(attempt))
        assert view is not None
        assert view.exit_code == -signal.SIGKILL
        assert not stand_in.is_running(bridge.starts(attempt)[0]["pid"])


async def test_a_cancel_before_the_start_starts_nothing(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.request()
        await bridge.cancel(attempt)
        await bridge.driver.drive(attempt)
        assert isinstance((await bridge.history(attempt))[-1], AttemptCancelled)
        assert not (tmp_path / "state" / "attempts" / str(attempt)).exists()


async def test_a_cancel_that_overtakes_its_request_starts_nothing(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt, job_id = new_id(), new_id()
        command = CancelAttempt(attempt_id=attempt, reason="test", job_id=job_id)
        await bridge.handlers.cancel(command, envelope(command))
        assert await bridge.request(attempt_id=attempt, job_id=job_id) == attempt
        await bridge.driver.drive(attempt)
        assert [type(event) for event in await bridge.history(attempt)] == [AttemptCancelRequested, AttemptCancelled]
        [recorded, _] = await bridge.store.read_stream(attempt_stream(attempt))
        assert recorded.correlation_id == job_id
        assert not (tmp_path / "state" / "attempts" / str(attempt)).exists()


@pytest.mark.parametrize("resolved_again", [False, True], ids=["first-start", "start-resolved-again"])
async def test_a_start_that_races_its_jobs_cancel_is_not_intended_after_it(
    log_database: LogDatabase, store_for: StoreFor, tmp_path: Path, *, resolved_again: bool
) -> None:
    """The cancel is written and not committed when the bridge decides; whoever commits first comes first."""
    scheduler = await store_for("scheduler")
    async with a_bridge(log_database, tmp_path) as bridge, asyncpg.create_pool(log_database.dsn("scheduler")) as pool:
        job_id = new_id()
        attempt = await bridge.request(job_id=job_id)
        if resolved_again:
            await bridge.intend(attempt)
            await expire(log_database, attempt)
            bridge.leases.forget(attempt)
        asked = JobCancelRequested(requested_at=utc_now(), reason="test")
        async with asyncio.TaskGroup() as tasks, pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await scheduler.append_in(connection, [an_append(f"job-{job_id}", asked, correlation_id=job_id)])
            driving = tasks.create_task(bridge.driver.drive(attempt))
            await eventually(lambda: somebody_waits_for_the_log(pool))
            assert not driving.done()
            await transaction.commit()
        await bridge.until(attempt, AttemptCancelled)
        kinds = [type(event) for event in await bridge.history(attempt)]
        assert AttemptStartIntended not in kinds[kinds.index(AttemptCancelRequested) :]
        assert kinds.count(AttemptStartIntended) == resolved_again
        assert bridge.starts(attempt) == []


async def somebody_waits_for_the_log(pool: asyncpg.Pool) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return bool(await pool.fetchval(waiting))


async def test_a_cancel_between_intent_and_submit_ends_without_a_start(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.request()
        await bridge.intend(attempt)
        await bridge.cancel(attempt)
        await bridge.until(attempt, AttemptCancelled)
        assert bridge.starts(attempt) == []


async def test_a_trainer_killed_from_outside_fails_as_killed(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        stand_in.kill(bridge.starts(attempt)[0]["pid"], signal.SIGKILL)
        failed = await bridge.until(attempt, AttemptFailed)
        assert (failed.kind, failed.exit_code) == ("killed", -9)


async def test_a_killed_runner_takes_its_trainer_along_and_the_attempt_is_lost(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        claimed = tmp_path / "state" / "attempts" / str(attempt) / "started.json"
        stand_in.kill(json.loads(claimed.read_text())["runner_pid"], signal.SIGKILL)
        lost = await bridge.until(attempt, AttemptLost)
        assert "left no exit code" in lost.message
        assert not stand_in.is_running(bridge.starts(attempt)[0]["pid"])


async def test_a_machine_without_a_trainer_refuses_the_start_and_says_what_to_do(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path, trainer_python=tmp_path / "nothing") as bridge:
        attempt = await bridge.request()
        failed = await bridge.until(attempt, AttemptFailed)
        assert failed.kind == "start_refused"
        assert "just setup-trainer" in failed.advice


async def test_an_unknown_provider_is_refused_before_anything_is_recorded(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        command = RequestAttempt(
            attempt_id=new_id(),
            job_id=new_id(),
            attempt_number=1,
            provider="moon",
            config={},
            dataloader=[],
            datasets=[],
            resume=None,
            price_micro_usd_per_hour=0,
        )
        with pytest.raises(Rejected) as refused:
            await bridge.handlers.request(command, envelope(command))
        assert refused.value.code == "unknown_provider"
        assert await bridge.history(command.attempt_id) == []


async def test_after_a_restart_the_bridge_goes_on_with_the_run_it_finds(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.started()
    async with a_bridge(log_database, tmp_path) as after:
        await after.driver.drive(attempt)
        stand_in.finish(after.state_dir, attempt)
        failed = await after.until(attempt, AttemptFailed)
        assert failed.exit_code == 0
        assert len(after.starts(attempt)) == 1


# ---- fault windows ---------------------------------------------------------------------------------------------------


async def test_crash_between_intent_and_submit_starts_once_under_the_newest_token(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.request()
        await before.intend(attempt)
    async with a_bridge(log_database, tmp_path) as after:
        await after.driver.drive(attempt)
        start = await after.until_started(attempt)
        history = await after.history(attempt)
        assert [event.epoch for event in history if isinstance(event, AttemptStartIntended)] == [1, 2]
        assert digest(start["token"]) == newest_digest(history)


async def test_crash_between_submit_and_recorded_outcome_finds_the_run_and_keeps_its_token(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.request()
        epoch = await before.intend(attempt, digest("the-token"))
        tag = a_tag(attempt, epoch)
        await before.provider.submit(StartOrder(tag=tag, spec=stand_in.a_spec(attempt), token="the-token"))
    async with a_bridge(log_database, tmp_path) as after:
        await after.driver.drive(attempt)
        start = await after.until_started(attempt)
        history = await after.history(attempt)
        assert isinstance(history[-1], AttemptAccepted)
        assert digest(start["token"]) == newest_digest(history)
        await after.driver.drive(attempt)
        assert len(after.starts(attempt)) == 1


async def test_a_bridge_paused_between_intent_and_submit_starts_nothing_when_it_wakes(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as paused, a_bridge(log_database, tmp_path, owner="second") as next_:
        attempt = await paused.request()
        epoch = await paused.intend(attempt)
        await expire(log_database, attempt)
        await next_.driver.drive(attempt)
        start = await next_.until_started(attempt)
        with pytest.raises(StaleEpoch):
            await paused.provider.submit(
                StartOrder(tag=a_tag(attempt, epoch), spec=stand_in.a_spec(attempt), token="old")
            )
        with pytest.raises(StaleEpoch):
            await paused.provider.cancel(a_tag(attempt, epoch), str(attempt), 0)
        assert digest(start["token"]) == newest_digest(await next_.history(attempt))
        assert stand_in.is_running(start["pid"])
        assert len(next_.starts(attempt)) == 1


async def test_two_bridges_racing_for_many_attempts_start_each_exactly_once(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as a, a_bridge(log_database, tmp_path, owner="second") as b:
        attempts = [await a.request() for _ in range(6)]
        for attempt in attempts:
            a.reconciler.nudge(attempt)
            b.reconciler.nudge(attempt)
        await asyncio.gather(a.reconciler.tick(), b.reconciler.tick())
        for attempt in attempts:
            start = await a.until_started(attempt)
            history = await a.history(attempt)
            assert digest(start["token"]) == newest_digest(history)
            assert sum(isinstance(event, AttemptAccepted) for event in history) == 1
        owners = await a.pool.fetch("SELECT DISTINCT owner FROM leases")
        assert {row["owner"] for row in owners} <= {"first", "second"}


async def test_an_early_hello_before_the_recorded_outcome_does_not_hide_the_run(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as before:
        attempt = await before.request()
        epoch = await before.intend(attempt)
        await before.provider.submit(StartOrder(tag=a_tag(attempt, epoch), spec=stand_in.a_spec(attempt), token="t"))
        await before.report(attempt, "hello", {"device": "cpu"})
    async with a_bridge(log_database, tmp_path) as after:
        await after.driver.drive(attempt)
        kinds = [type(event) for event in await after.history(attempt)]
        assert kinds[-1] is AttemptAccepted
        assert kinds.count(AttemptStarted) == 1


# ---- orphans ---------------------------------------------------------------------------------------------------------


async def test_a_run_that_outlives_its_attempt_is_named_and_ended(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        await bridge.report(attempt, "failed", {"kind": "internal"})
        await bridge.sweeper.sweep()
        [start] = bridge.starts(attempt)
        assert stand_in.is_running(start["pid"]), "it may still hand in its last reports"
    async with a_bridge(log_database, tmp_path, clock=lambda: utc_now().replace(year=2100)) as later:
        await later.sweeper.sweep()
        await later.sweeper.sweep()

        async def ended() -> bool:
            return not stand_in.is_running(start["pid"])

        await stand_in.eventually("the orphan has ended", ended)
        late = [type(event).__name__ for event in await later.history(attempt)]
        assert late.count("AttemptLateReport") == 1


async def test_a_run_of_an_attempt_that_the_log_does_not_know_is_ended(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        unknown = new_id()
        await bridge.provider.submit(StartOrder(tag=a_tag(unknown, 1), spec=stand_in.a_spec(unknown), token="t"))
        start = await bridge.until_started(unknown)
        await bridge.sweeper.sweep()

        async def ended() -> bool:
            return not stand_in.is_running(start["pid"])

        await stand_in.eventually("the orphan has ended", ended)


async def test_a_sweep_leaves_live_attempts_alone(log_database: LogDatabase, tmp_path: Path) -> None:
    async with a_bridge(log_database, tmp_path) as bridge:
        attempt = await bridge.started()
        await bridge.sweeper.sweep()
        await bridge.driver.drive(attempt)
        view = await bridge.provider.fetch(str(attempt))
        assert view is not None
        assert view.word == "running"
        assert not (tmp_path / "state" / "attempts" / str(attempt) / "cancel.json").exists()
