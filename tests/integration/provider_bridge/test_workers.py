"""Workers on a real log: who gets which run, what becomes of a run whose worker is silent, and what nobody may read."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.provider_bridge.domain.worker_acts import Release
from services.provider_bridge.inbound.worker_watch import WatchPace, WorkerWatch
from services.provider_bridge.outbound.credential_key import CredentialKey
from services.provider_bridge.outbound.ports import NoCapacity, StartOrder, Tag
from services.provider_bridge.outbound.worker_store import RowMoved, WorkerStore
from services.provider_bridge.outbound.workers import WorkersProvider
from services.provider_bridge.worker_handlers import WorkerHandlers
from services.provider_bridge.worker_stream import worker_stream
from shared.clock import utc_now
from shared.contracts.offers import Offer
from shared.contracts.worker import (
    BeatWorker,
    DrainWorker,
    ReadWorkers,
    RemoveWorker,
    ResumeWorker,
    RotateWorkerToken,
    WorkerStatus,
)
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.problems import Rejected, Unavailable
from tests.contract.providers.worker import DIGEST, KEY, StandInWorker, envelope
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.support.log import LogDatabase

TOKEN = "the-trainer's-own-token-4711"
LOST_S = 600.0


@dataclass
class Yard:
    """A bridge's side of workers, whose clock the test moves."""

    pool: asyncpg.Pool
    log: PostgresEventStore
    now: Any = field(default_factory=utc_now)
    nudged: list[UUID] = field(default_factory=list[UUID])

    def __post_init__(self) -> None:
        self.store = self.another_store()
        self.provider = WorkersProvider(self.store)
        self.handlers = WorkerHandlers(self.store, self.nudged.append)
        self.watch = WorkerWatch(self.store, self.nudged.append, WatchPace(lost_s=LOST_S))

    def another_store(self, key: str = KEY) -> WorkerStore:
        """What another bridge has."""
        return WorkerStore(self.pool, self.log, lambda: self.now, CredentialKey(key))

    async def worker(self, *, gpu: dict[str, Any] | None = None, **created: Any) -> StandInWorker:
        """A worker that has registered."""
        worker = StandInWorker(self.handlers, **(gpu or {}))
        await worker.create(**created)
        await worker.register()
        return worker

    async def given(self, **offer: Any) -> str:
        """A run that was given to somebody."""
        return await self.provider.submit(an_order(**offer))

    async def look(self, *, after_s: float) -> None:
        """The watch looks, so much later."""
        self.now += timedelta(seconds=after_s)
        await self.watch.look()

    async def status(self, worker: StandInWorker) -> WorkerStatus | None:
        """As it is listed; None when it is not."""
        listed = (await self.handlers.read(ReadWorkers(), envelope())).data["workers"]
        return next((one["status"] for one in listed if one["worker_id"] == str(worker.worker_id)), None)

    async def beat(self, worker: StandInWorker, has: str | None = None, digest: str = DIGEST) -> str | None:
        """A heartbeat; the job that it is told to abandon."""
        command = BeatWorker(worker_id=worker.worker_id, token_sha256=digest, status="idle", current_job_id=has)
        return (await self.handlers.beat(command, envelope())).data["abandon_job"]

    async def types(self, worker: StandInWorker) -> list[str]:
        """What happened to it, in short."""
        rows = await self.log.read_stream(worker_stream(worker.worker_id))
        return [row.type.split(".")[1] for row in rows]

    async def word(self, ref: str) -> str:
        """The run as the provider calls it."""
        view = await self.provider.fetch(ref)
        assert view is not None
        return view.word


@pytest.fixture
async def yard(log_database: LogDatabase) -> AsyncIterator[Yard]:
    async with asyncpg.create_pool(log_database.dsn("provider_bridge"), min_size=1, max_size=8) as pool:
        log = PostgresEventStore(pool)
        yield Yard(pool, log)
        await log.close()


def an_order(attempt_id: UUID | None = None, epoch: int = 1, **offer: Any) -> StartOrder:
    tag = Tag(attempt_id=attempt_id or new_id(), epoch=epoch)
    plain: dict[str, Any] = {
        "provider": "worker",
        "hardware": "any worker",
        "gpu": "",
        "gpu_count": 0,
        "vram_gb": 0,
        "price_micro_usd_per_hour": 0,
    }
    chosen = Offer(**{**plain, **offer}) if offer else None
    return StartOrder(tag=tag, spec=stand_in.a_spec(tag.attempt_id), token=TOKEN, offer=chosen)


async def begun(worker: StandInWorker) -> None:
    """It takes what it is told of and says that it runs."""
    orders = await worker.orders()
    assert orders.submit is not None
    worker.job = orders.submit
    await worker.report(orders.submit, "running")


# ---- who gets what ---------------------------------------------------------------------------------------------------


async def test_every_worker_is_quoted_and_only_idle_ones_can_be_had(yard: Yard) -> None:
    idle, busy, never = await yard.worker(price_micro_usd_per_hour=7), await yard.worker(), StandInWorker(yard.handlers)
    await never.create()
    await yard.given(hardware=str(busy.worker_id))
    offers = {one.hardware: one for one in await yard.provider.quote()}
    assert set(offers) == {str(idle.worker_id), str(busy.worker_id)}
    assert offers[str(idle.worker_id)].availability == "high"
    assert offers[str(idle.worker_id)].price_micro_usd_per_hour == 7
    assert offers[str(busy.worker_id)].availability == "none"


@pytest.mark.parametrize("workers", [1, 3])
async def test_bridges_that_race_for_idle_workers_give_each_worker_one_run_and_each_run_one_worker(
    yard: Yard, workers: int
) -> None:
    for _ in range(workers):
        await yard.worker()
    bridges = [WorkersProvider(yard.another_store()) for _ in range(4)]
    orders = [an_order() for _ in range(6)]
    asked = [bridge.submit(order) for order in orders for bridge in bridges[:2]]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in outcomes if not isinstance(one, str)} == {NoCapacity}
    runs = await yard.provider.list_ours()
    assert len(runs) == workers
    assert len({run.tag.attempt_id for run in runs}) == workers
    refs = {run.ref for run in runs}
    assert {one for one in outcomes if isinstance(one, str)} == refs
    rows = await yard.pool.fetch("SELECT worker_id, attempt_id FROM worker_runs WHERE word = 'assigned'")
    assert len({row["worker_id"] for row in rows}) == workers == len(rows)


async def test_one_attempt_that_several_bridges_submit_has_one_worker(yard: Yard) -> None:
    machines = [await yard.worker() for _ in range(3)]
    order = an_order()
    bridges = [WorkersProvider(yard.another_store()) for _ in range(4)]
    assert set(await asyncio.gather(*(bridge.submit(order) for bridge in bridges))) == {str(order.tag.attempt_id)}
    histories = [await yard.types(machine) for machine in machines]
    assert sum(history.count("assigned") for history in histories) == 1


async def test_a_run_is_listed_under_the_epoch_that_may_end_it(yard: Yard) -> None:
    """Its lease has moved on since; a sweep that asks with what is listed must be heard."""
    worker = await yard.worker()
    order = an_order(epoch=1)
    await yard.provider.submit(order)
    await begun(worker)
    await yard.provider.find(Tag(attempt_id=order.tag.attempt_id, epoch=4))
    [ours] = await yard.provider.list_ours()
    assert ours.tag.epoch == 4
    await yard.provider.cancel(ours.tag, ours.ref, 30)
    assert (await worker.orders()).cancel is not None


async def test_a_run_goes_to_the_worker_that_has_what_is_asked(yard: Yard) -> None:
    await yard.worker(gpu={"name": "RTX 3060", "vram_gb": 12}, labels={"site": "home"})
    big = await yard.worker(gpu={"name": "NVIDIA A100", "count": 4, "vram_gb": 80}, labels={"site": "lab-3"})
    await yard.given(hardware="site=lab-*", gpu="*a100*", gpu_count=2, vram_gb=40)
    assert (await big.orders()).submit is not None
    with pytest.raises(NoCapacity):
        await yard.given(hardware="site=lab-*")


async def test_a_run_goes_to_the_worker_that_was_chosen_by_its_id_or_to_none(yard: Yard) -> None:
    machines = [await yard.worker() for _ in range(2)]
    offers = {offer.hardware: offer for offer in await yard.provider.quote()}
    assert set(offers) == {str(machine.worker_id) for machine in machines}
    chosen = offers[str(machines[1].worker_id)]
    tag = Tag(attempt_id=new_id(), epoch=1)
    order = StartOrder(tag=tag, spec=stand_in.a_spec(tag.attempt_id), token=TOKEN, offer=chosen)
    await yard.provider.submit(order)
    assert (await machines[1].orders()).submit is not None
    assert (await machines[0].orders()).submit is None
    with pytest.raises(NoCapacity):
        await yard.given(hardware=chosen.hardware)


async def test_a_draining_worker_gets_no_run_ends_when_idle_and_can_be_put_back(yard: Yard) -> None:
    worker = await yard.worker()
    await yard.given()
    await begun(worker)
    await yard.handlers.drain(DrainWorker(worker_id=worker.worker_id), envelope())
    orders = await worker.orders()
    assert (orders.drain, orders.shutdown) == (True, False)
    assert worker.job is not None
    await worker.report(worker.job, "completed", exit_code=0)
    assert (await worker.orders()).shutdown
    with pytest.raises(NoCapacity):
        await yard.given()
    await yard.handlers.resume(ResumeWorker(worker_id=worker.worker_id), envelope())
    await yard.given()


async def test_an_ephemeral_worker_has_one_run_and_is_told_to_end(yard: Yard) -> None:
    worker = await yard.worker(worker_type="ephemeral")
    await yard.given()
    await begun(worker)
    assert worker.job is not None
    await worker.report(worker.job, "failed")
    assert (await worker.orders()).shutdown
    with pytest.raises(NoCapacity):
        await yard.given()


# ---- silence ---------------------------------------------------------------------------------------------------------


async def test_a_worker_is_offline_after_two_minutes_of_silence_and_online_again_when_it_is_heard(yard: Yard) -> None:
    worker = await yard.worker()
    await yard.look(after_s=0)
    await yard.look(after_s=119)
    assert await yard.status(worker) == "idle"
    await yard.look(after_s=2)
    assert await yard.status(worker) == "offline"
    with pytest.raises(NoCapacity):
        await yard.given()
    await yard.beat(worker)
    assert await yard.status(worker) == "idle"
    assert await yard.types(worker) == ["created", "registered", "came_online", "went_offline", "came_online"]


async def test_heartbeats_are_no_history(yard: Yard) -> None:
    worker = await yard.worker()
    before = await yard.types(worker)
    for _ in range(5):
        yard.now += timedelta(seconds=30)
        await yard.beat(worker)
        await yard.look(after_s=0)
    assert await yard.types(worker) == before


async def test_a_run_is_given_up_only_after_the_grace_and_its_worker_is_then_told_to_abandon_it(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    await yard.look(after_s=0)
    await yard.look(after_s=121)
    await yard.look(after_s=LOST_S - 10)
    assert await yard.word(ref) == "running"
    assert not await yard.provider.confirm_gone(ref)
    heard_at = yard.now - timedelta(seconds=121 + LOST_S - 10)
    await yard.look(after_s=20)
    view = await yard.provider.fetch(ref)
    assert view is not None
    assert (view.word, view.ended_at) == ("gone", heard_at)
    assert yard.nudged == [UUID(ref)]
    assert worker.job is not None
    assert await yard.beat(worker, has=worker.job.job_id) == worker.job.job_id
    answer = await worker.register(worker.job)
    assert answer == {"resume_job": None, "abandon_job": worker.job.job_id}
    with pytest.raises(Rejected, match="not_assigned"):
        await worker.report(worker.job, "completed", exit_code=0)


async def test_a_worker_that_is_back_before_the_grace_goes_on_with_its_run(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    await yard.look(after_s=0)
    await yard.look(after_s=300)
    assert worker.job is not None
    answer = await worker.register(worker.job)
    assert answer["abandon_job"] is None
    assert answer["resume_job"]["attempt_id"] == ref
    assert answer["resume_job"]["token"] == ""  # it has it: nobody keeps it any longer
    assert await yard.word(ref) == "running"


async def test_a_worker_that_comes_back_without_its_run_has_lost_it(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    await worker.register()
    assert await yard.word(ref) == "gone"
    assert yard.nudged[-1] == UUID(ref)


async def test_a_run_that_was_told_and_not_begun_is_told_again(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    first = (await worker.orders()).submit
    await worker.register()
    again = (await worker.orders()).submit
    assert first is not None
    assert again == first
    assert (first.attempt_id, first.token) == (ref, TOKEN)


async def test_what_was_silent_while_nobody_watched_counts_for_nothing(yard: Yard) -> None:
    """After an outage of the bridge every worker was silent, and none of them is to blame."""
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    await yard.look(after_s=86_400)
    assert await yard.status(worker) == "busy"
    assert await yard.word(ref) == "running"


async def test_ephemeral_workers_that_come_no_more_are_forgotten_and_persistent_ones_are_not(yard: Yard) -> None:
    kinds = [StandInWorker(yard.handlers) for _ in range(2)]
    await kinds[0].create(worker_type="ephemeral")
    await kinds[1].create(worker_type="persistent")
    spent = await yard.worker(worker_type="ephemeral")
    await yard.look(after_s=0)
    await yard.look(after_s=301)
    assert [await yard.status(one) for one in (*kinds, spent)] == [None, "connecting", "offline"]
    await yard.look(after_s=3600)
    assert await yard.status(spent) is None


# ---- tokens, removal, cancel -----------------------------------------------------------------------------------------


async def test_after_a_rotation_the_old_token_is_refused_at_once(yard: Yard) -> None:
    worker = await yard.worker()
    await yard.handlers.rotate(RotateWorkerToken(worker_id=worker.worker_id, token_sha256="f" * 64), envelope())
    for asked in (yard.beat(worker), worker.orders(), worker.register()):
        with pytest.raises(Rejected, match="invalid_token"):
            await asked
    assert await yard.beat(worker, digest="f" * 64) is None


async def test_a_busy_worker_is_removed_by_force_only_and_its_run_is_gone(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    with pytest.raises(Rejected, match="worker_busy"):
        await yard.handlers.remove(RemoveWorker(worker_id=worker.worker_id), envelope())
    await yard.handlers.remove(RemoveWorker(worker_id=worker.worker_id, force=True), envelope())
    assert await yard.word(ref) == "gone"
    assert await yard.status(worker) is None
    with pytest.raises(Rejected, match="worker_not_found"):
        await worker.orders()
    with pytest.raises(Rejected, match="invalid_token"):
        await yard.beat(worker)


async def test_a_run_that_the_worker_was_never_told_of_is_over_as_soon_as_it_is_cancelled(yard: Yard) -> None:
    worker = await yard.worker()
    order = an_order()
    ref = await yard.provider.submit(order)
    await yard.provider.cancel(order.tag, ref, 30)
    assert await yard.provider.confirm_gone(ref)
    assert (await worker.orders()).submit is None
    assert (await yard.types(worker))[-1] == "released"


async def test_a_run_that_was_told_while_its_cancel_was_on_the_way_is_not_over_behind_the_workers_back(
    yard: Yard,
) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    assert (await worker.orders()).submit is not None
    never = Release(attempt_id=UUID(ref), outcome="never_begun", ended_at=yard.now, at=yard.now)
    with pytest.raises(RowMoved):
        await yard.store.commit(worker.worker_id, never, only_if_untold=True)
    assert await yard.word(ref) == "assigned"
    assert "released" not in await yard.types(worker)


async def test_a_run_that_the_worker_was_told_of_is_over_when_the_worker_says_so(yard: Yard) -> None:
    worker = await yard.worker()
    order = an_order()
    ref = await yard.provider.submit(order)
    assert (await worker.orders()).submit is not None
    await yard.provider.cancel(order.tag, ref, 30)
    assert not await yard.provider.confirm_gone(ref)
    orders = await worker.orders()
    assert orders.cancel is not None
    assert (orders.cancel.attempt_id, orders.cancel.grace_s) == (ref, 30)


async def test_a_trainers_token_is_kept_sealed_and_only_until_its_worker_has_it(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    kept = await yard.pool.fetchval("SELECT token FROM worker_runs WHERE attempt_id = $1", UUID(ref))
    assert TOKEN.encode() not in kept
    with pytest.raises(Unavailable, match="TUNEWRIGHT_CREDENTIAL_KEY"):
        yard.another_store("a key that is long enough and of somebody else").unsealed(kept, UUID(ref))
    await begun(worker)
    assert await yard.pool.fetchval("SELECT token FROM worker_runs WHERE attempt_id = $1", UUID(ref)) is None
    dump = await yard.pool.fetch("SELECT data::text FROM log.events WHERE stream LIKE 'worker-%'")
    assert not [row for row in dump if TOKEN in row[0]]


async def test_the_end_of_a_run_is_told_by_how_long_ago_it_was_and_a_repeat_changes_nothing(yard: Yard) -> None:
    worker = await yard.worker()
    ref = await yard.given()
    await begun(worker)
    assert worker.job is not None
    for _ in range(2):
        await worker.report(worker.job, "failed", exit_code=76, error="out of memory", ended_s_ago=40)
    view = await yard.provider.fetch(ref)
    assert view is not None
    assert (view.word, view.exit_code, view.last_words) == ("ended", 76, "out of memory")
    assert view.ended_at == yard.now - timedelta(seconds=40)
    assert (await yard.types(worker)).count("released") == 1
