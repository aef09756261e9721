"""The workers that pack datasets. A claim is a row, so the work goes on in any replica after a restart.

A try that was not the dataset's fault (disk full, object store away) is repeated; after MAX_TRIES it ends as a refusal
that says so, because a job must never wait without a reason.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import structlog

from services.storage.domain import dataset
from services.storage.outbound.dataset_files import Bounds, UnusableDataset, survey, tar_blocks
from services.storage.outbound.objects import Objects, off_loop
from shared.clock import Clock
from shared.contracts.artifact import DatasetsPacked, DatasetsRefused, PackDatasets
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.job import DatasetRequest, PackedDataset
from shared.decider import Decider, execute, fold, metadata
from shared.eventstore.api import EventStore
from shared.ids import new_id
from shared.problems import Rejected
from shared.sql import load_queries

SQL = load_queries(Path(__file__).parent / "sql" / "queries.sql")
DECIDER = Decider(initial=dataset.INITIAL, evolve=dataset.evolve, decide=dataset.decide)
DATASETS = "datasets"

MAX_TRIES = 5
RETRY_DELAY_S = 10.0
IDLE_S = 1.0
"""How late a worker sees work that another replica was told about."""
QUERY_TIMEOUT_S = 30.0

log = structlog.stdlib.get_logger()


class PackLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be packed, and how much at once."""

    roots: Sequence[Path]
    private: Sequence[Path]
    max_dataset_bytes: int
    parallelism: int
    lease_s: float


PackFolder = Callable[[str], Awaitable[PackedDataset]]
"""Stores a folder as one tar (its `dataset_id` empty), or raises UnusableDataset."""


def folder_packer(objects: Objects, limits: PackLimits) -> PackFolder:
    """Packs folders of this machine into the object store."""
    bounds = Bounds(roots=limits.roots, private=limits.private)

    async def pack(folder: str) -> PackedDataset:
        files = await asyncio.to_thread(survey, folder, bounds, limits.max_dataset_bytes)
        blob = await objects.put(DATASETS, off_loop(tar_blocks(files)), with_md5=False)
        return PackedDataset(dataset_id="", sha256=blob.sha256, size_bytes=blob.size_bytes, file_count=len(files))

    return pack


class _Claim(msgspec.Struct, frozen=True, kw_only=True):
    worker: UUID
    command: PackDatasets
    envelope: CommandEnvelope
    tries: int


class _Unfit(Exception):  # noqa: N818 - a finding, not an error of ours
    """One of the job's datasets cannot be used."""

    def __init__(self, dataset_id: str, finding: UnusableDataset) -> None:
        super().__init__(finding.message)
        self.dataset_id = dataset_id
        self.finding = finding


class Packing:
    """Takes packing work in and does it; `run` is the service's loop."""

    def __init__(
        self, pool: asyncpg.Pool, store: EventStore, pack_folder: PackFolder, clock: Clock, limits: PackLimits
    ) -> None:
        self._pool = pool
        self._store = store
        self._pack_folder = pack_folder
        self._clock = clock
        self._limits = limits
        self._work_came = asyncio.Event()

    async def accept(self, command: PackDatasets, envelope: CommandEnvelope) -> None:
        """Remembers the work, durably; a repeat changes nothing."""
        await self._pool.execute(
            SQL.enqueue_pack_job,
            command.job_id,
            msgspec.json.encode(command),
            msgspec.json.encode(envelope),
            self._clock(),
            timeout=QUERY_TIMEOUT_S,
        )
        self._work_came.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Packs until `stop` is set; work in hand is then given back at once."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._limits.parallelism):
                lanes.create_task(self._lane(stop))
            await stop.wait()

    async def _lane(self, stop: asyncio.Event) -> None:
        worker = new_id()
        while not stop.is_set():
            is_busy = False
            try:
                is_busy = await self._work_once(worker, stop)
            except* Exception as failed:  # top of the loop; the claim runs out and is taken again
                log.warning("storage.packing.interrupted", exc_info=failed)
            if not is_busy:
                await self._wait_for_work(stop)

    async def _work_once(self, worker: UUID, stop: asyncio.Event) -> bool:
        """Takes one job and packs it; False when there was none."""
        claim = await self._claim(worker)
        if claim is not None:
            await self._work(claim, stop)
        return claim is not None

    async def _wait_for_work(self, stop: asyncio.Event) -> None:
        self._work_came.clear()
        await _first_of(self._work_came, stop, timeout_s=IDLE_S)

    async def _claim(self, worker: UUID) -> _Claim | None:
        now = self._clock()
        row = await self._pool.fetchrow(SQL.claim_pack_job, worker, now, self._lease_end(now), timeout=QUERY_TIMEOUT_S)
        if row is None:
            return None
        return _Claim(
            worker=worker,
            command=msgspec.json.decode(row["command"], type=PackDatasets),
            envelope=msgspec.json.decode(row["envelope"], type=CommandEnvelope),
            tries=row["tries"],
        )

    async def _work(self, claim: _Claim, stop: asyncio.Event) -> None:
        """Packs under a lease that is kept alive; ends early when `stop` is set or the lease is lost."""
        lost = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            packing = group.create_task(self._pack_and_record(claim))
            watch = group.create_task(self._end_when(stop, lost, packing))
            renewing = group.create_task(self._renew(claim, lost))
            await asyncio.wait({packing})
            watch.cancel()
            renewing.cancel()
        if packing.cancelled() and not lost.is_set():
            await self._give_back(claim, delay_s=0.0, reason="the service was stopped", uncounted=1)

    @staticmethod
    async def _end_when(stop: asyncio.Event, lost: asyncio.Event, packing: asyncio.Task[None]) -> None:
        await _first_of(stop, lost, timeout_s=None)
        packing.cancel()

    async def _renew(self, claim: _Claim, lost: asyncio.Event) -> None:
        while not lost.is_set():
            await asyncio.sleep(self._limits.lease_s / 3)
            kept = await self._pool.fetchval(
                SQL.renew_pack_claim,
                claim.command.job_id,
                claim.worker,
                self._lease_end(self._clock()),
                timeout=QUERY_TIMEOUT_S,
            )
            if kept is None:
                lost.set()

    async def _pack_and_record(self, claim: _Claim) -> None:
        job_id = claim.command.job_id
        if await self._is_recorded(job_id):
            await self._pool.execute(SQL.finish_pack_job, job_id, self._clock(), timeout=QUERY_TIMEOUT_S)
            return
        try:
            packed = [await self._pack(request) for request in claim.command.datasets]
        except _Unfit as unfit:
            await self._record(claim, self._refusal(job_id, unfit))
        except Exception as error:  # noqa: BLE001 - the top of one try: whatever went wrong is logged and tried again
            await self._try_later(claim, error)
        else:
            await self._record(claim, DatasetsPacked(job_id=job_id, datasets=packed, packed_at=self._clock()))

    async def _is_recorded(self, job_id: UUID) -> bool:
        """A worker that was ended between the append and its own table left this to be finished."""
        return fold(DECIDER, await self._store.read_stream(dataset.stream_of(job_id))).result is not None

    async def _pack(self, request: DatasetRequest) -> PackedDataset:
        try:
            packed = await self._pack_folder(request.path)
        except UnusableDataset as finding:
            raise _Unfit(request.dataset_id, finding) from finding
        return msgspec.structs.replace(packed, dataset_id=request.dataset_id)

    async def _record(self, claim: _Claim, result: dataset.PackResult) -> None:
        job_id = claim.command.job_id
        await execute(
            self._store,
            DECIDER,
            dataset.stream_of(job_id),
            result,
            meta=metadata(claim.envelope),
            correlation_id=job_id,
        )
        await self._pool.execute(SQL.finish_pack_job, job_id, self._clock(), timeout=QUERY_TIMEOUT_S)
        log.info("storage.datasets.recorded", job_id=str(job_id), result=type(result).__name__, tries=claim.tries)

    async def _try_later(self, claim: _Claim, error: Exception) -> None:
        reason = error.detail if isinstance(error, Rejected) else repr(error)
        log.warning("storage.datasets.delayed", job_id=str(claim.command.job_id), tries=claim.tries, exc_info=error)
        if claim.tries < MAX_TRIES:
            await self._give_back(claim, delay_s=RETRY_DELAY_S * claim.tries, reason=reason, uncounted=0)
            return
        finding = UnusableDataset(
            f"the datasets could not be stored in {MAX_TRIES} tries: {reason}",
            "This is a fault of the storage service, not of the data: ask its operator, then submit again.",
        )
        first = claim.command.datasets[0].dataset_id if claim.command.datasets else ""
        await self._record(claim, self._refusal(claim.command.job_id, _Unfit(first, finding)))

    def _refusal(self, job_id: UUID, unfit: _Unfit) -> DatasetsRefused:
        return DatasetsRefused(
            job_id=job_id,
            dataset_id=unfit.dataset_id,
            message=unfit.finding.message,
            advice=unfit.finding.advice,
            refused_at=self._clock(),
        )

    async def _give_back(self, claim: _Claim, *, delay_s: float, reason: str, uncounted: int) -> None:
        not_before = self._clock() + timedelta(seconds=delay_s)
        await self._pool.execute(
            SQL.release_pack_claim,
            claim.command.job_id,
            claim.worker,
            not_before,
            reason,
            uncounted,
            timeout=QUERY_TIMEOUT_S,
        )

    def _lease_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._limits.lease_s)


async def _first_of(*events: asyncio.Event, timeout_s: float | None) -> None:
    """Returns when one of the events is set, or after the time."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
