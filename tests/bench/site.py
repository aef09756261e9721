"""The whole of Tunewright for a benchmark: `tunewright up` on a log of the run's Postgres, with a past if wanted."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psutil

from deploy.embedded.process import free_port
from services.gateway.projections.jobs import project_page
from services.scheduler.projections import queue
from shared.clock import utc_now
from shared.contracts.job import (
    DatasetRequest,
    JobCancelled,
    JobFundsReserved,
    JobQueued,
    JobSubmitted,
    JobWaitExplained,
)
from shared.contracts.subjects import DURABLES, SCHEDULER_QUEUE
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.messaging.inbox import KEEP_POSITIONS
from tests.bench.bench import Bench
from tests.bench.http_load import Load, generate, request
from tests.bench.report import ROOT
from tests.bench.servers import fresh_log
from tests.support.bulk_log import PastEvent, write
from tests.support.log import LogDatabase

Used = dict[str, float]
"""Process -> what it used."""

READY_S = 90.0
RESTING_S = 0.06
"""Processor seconds in half a second that everything together may use at rest."""
MEGABYTE = 1024**2
_PAGE = 2000
_CHECKPOINT = """
insert into {schema}.checkpoint (durable, position) values ($1, $2)
on conflict (durable) do update set position = excluded.position
"""
_INBOX = """
insert into {schema}.inbox (durable, event_id, position)
select $1, event_id, global_position from log.events
where category = any ($2::text[]) and global_position > $3
on conflict do nothing
"""
_BEHIND = """
select count(*) from {schema}.checkpoint
where durable <> $1 and position < (select max(global_position) from log.events)
"""


def more(after: Used, before: Used) -> Used:
    """What was used between."""
    return {name: used - before.get(name, 0.0) for name, used in after.items()}


def largest(used: Used, unit: float = 1.0, digits: int = 0, count: int = 9) -> str:
    """`gateway 80, postgres 60`, the largest first."""
    ordered = sorted(used.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value / unit:.{digits}f}" for name, value in ordered[:count])


class Site:
    """Everything that runs, reached at `port`; the dispatcher has no slots, so that no trainer eats the processors."""

    def __init__(self, bench: Bench, database: LogDatabase) -> None:
        self.database = database
        self.port = free_port()
        self._data = bench.home / f"up-{uuid4().hex[:8]}"
        self._postgres = bench.postgres
        self._supervisor: subprocess.Popen[bytes] | None = None
        pictures = bench.home / "pictures"
        pictures.mkdir(exist_ok=True)
        (pictures / "one.png").write_bytes(b"\x89PNG not really")
        (pictures / "one.txt").write_text("a picture", encoding="utf-8")
        self.submit_body = json.dumps(_submit_body(pictures), separators=(",", ":")).encode()

    async def start(self) -> None:
        """Returns when every part is ready."""
        self._data.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(self._data), "--port", str(self.port)]
        environ = {
            **os.environ,
            "TUNEWRIGHT_DATABASE_URL": self.database.superuser_dsn,
            "SCHEDULER_MAX_CONCURRENT": "0",
            "SCHEDULER_USER_MAX_CONCURRENT": "0",
            "GATEWAY_EVENT_STREAMS_PER_IP": "2000",
            "STORAGE_MIN_FREE_BYTES": "1",
        }
        with (self._data / "up.log").open("ab") as log:
            self._supervisor = subprocess.Popen(  # noqa: ASYNC220 - it only forks
                command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + READY_S
        while not await asyncio.to_thread(self._is_ready):
            assert self._supervisor.poll() is None, (self._data / "up.log").read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline, "embedded mode is not ready"
            await asyncio.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/cloud/health/ready", timeout=3):
                return True
        except OSError:
            return False

    async def stop(self) -> None:
        """Stops everything but Postgres, which is the run's."""
        if self._supervisor is not None:
            self._supervisor.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._supervisor.wait, 60)

    # ---- what it uses ------------------------------------------------------------------------------------------------

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        state = json.loads((self._data / "run" / "state.json").read_text(encoding="utf-8"))
        for name, child in state["children"].items():
            yield name, psutil.Process(child["pid"])
        postmaster = int(next(self._postgres.home.rglob("postmaster.pid")).read_text(encoding="utf-8").split()[0])
        for process in (psutil.Process(postmaster), *psutil.Process(postmaster).children()):
            yield "postgres", process

    def cpu_s(self) -> Used:
        """Processor seconds by process so far; all of Postgres together."""
        used: Used = defaultdict(float)
        for name, process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:  # a backend whose client went
                continue
            used[name] += times.user + times.system
        return used

    def memory_mb(self) -> Used:
        """Proportional set size by process, in MiB."""
        used: Used = defaultdict(float)
        for name, process in self._processes():
            rollup = Path(f"/proc/{process.pid}/smaps_rollup")
            try:
                line = next(line for line in rollup.read_text(encoding="utf-8").splitlines() if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue
            used[name] += int(line.split()[1]) / 1024
        return used

    async def quiet(self, limit_s: float) -> float:
        """Returns when every event is handled and the processors rest; the seconds that took."""
        began = time.monotonic()
        connection = await asyncpg.connect(self.database.superuser_dsn)
        schemas = sorted({durable.service for durable in DURABLES})
        try:
            async with asyncio.timeout(limit_s):
                calm = 0
                while True:
                    before = sum(self.cpu_s().values())
                    await asyncio.sleep(0.5)
                    is_busy = sum(self.cpu_s().values()) - before > RESTING_S
                    queries = (_BEHIND.format(schema=schema) for schema in schemas)
                    behind = [await connection.fetchval(query, SCHEDULER_QUEUE.name) for query in queries]
                    calm = 0 if is_busy or any(behind) else calm + 1
                    if calm > 1:
                        return time.monotonic() - began
        finally:
            await connection.close()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def submits(self, **how: Any) -> Load:
        """Submits of one small job."""
        text = request(self.port, "POST", "/api/cloud/jobs/submit?provider=local", self.submit_body)
        return Load(port=self.port, requests=[text], **how)

    def gets(self, *paths: str, **how: Any) -> Load:
        """Reads of these paths in turn."""
        return Load(port=self.port, requests=[request(self.port, "GET", path) for path in paths], **how)

    async def seed(self, count: int) -> list[str]:
        """So many live jobs; their ids."""
        return (await generate(self.submits(count=count, seconds=30))).job_ids


def _submit_body(pictures: Path) -> dict[str, Any]:
    config = json.loads((ROOT / "trainer" / "demo_config.json").read_text(encoding="utf-8"))
    loader = json.loads((ROOT / "trainer" / "demo_dataloader.json").read_text(encoding="utf-8"))
    config["--pretrained_model_name_or_path"] = "black-forest-labs/FLUX.1-dev"
    loader[0]["instance_data_dir"] = str(pictures)
    return {"config": config, "dataloader_config": loader}


@asynccontextmanager
async def site(bench: Bench, past: Iterable[PastEvent] = ()) -> AsyncGenerator[Site]:
    """A running Tunewright on a log that holds these events, all of them handled."""
    async with fresh_log(bench) as database:
        await fill(database, past)
        running = Site(bench, database)
        try:
            await running.start()
            await running.quiet(300)
            yield running
        finally:
            await running.stop()


async def fill(database: LogDatabase, past: Iterable[PastEvent]) -> None:
    """Writes a past and folds the read models that live on it; its other consumers count it as handled."""
    written = await write(database.superuser_dsn, past)
    if written.last_position < written.first_position:
        return
    admin = await asyncpg.connect(database.superuser_dsn)
    for durable in (*DURABLES, SCHEDULER_QUEUE):
        await admin.execute(_CHECKPOINT.format(schema=durable.service), durable.name, written.last_position)
        remembered = written.last_position - KEEP_POSITIONS
        await admin.execute(_INBOX.format(schema=durable.service), durable.name, durable.categories, remembered)
    await admin.close()
    for schema, fold in (("gateway", project_page), ("scheduler", queue.fold)):
        dsn, settings = database.superuser_dsn, {"search_path": f"{schema}, log"}
        async with asyncpg.create_pool(dsn, min_size=1, max_size=3, server_settings=settings) as pool:
            store = PostgresEventStore(pool)
            position = 0
            async with pool.acquire() as connection, connection.transaction():
                while page := await store.read(after=position, limit=_PAGE):
                    await fold(connection, page)
                    position = page[-1].global_position
            await pool.execute("analyze")
            await store.close()


# ---- pasts -----------------------------------------------------------------------------------------------------------


def ended_jobs(count: int) -> Iterator[PastEvent]:
    """Jobs that came and went over a month."""
    start = utc_now() - timedelta(days=30)
    for number in range(count):
        at = start + timedelta(days=29) * number / count
        job_id = new_id()
        yield from _story(job_id, _submitted(number, at))
        yield from _story(job_id, JobCancelled(cancelled_at=at, reason="it was long ago"), at=at)


def waiting_jobs(count: int) -> Iterator[PastEvent]:
    """Live jobs that have everything but a slot."""
    start = utc_now() - timedelta(hours=12)
    for number in range(count):
        at = start + timedelta(seconds=number)
        job_id = new_id()
        explained = JobWaitExplained(reason="user_limit", detail="0 of 0 slots are taken", limit=0, holders=[])
        funded = JobFundsReserved(reserved_micro_usd=0, price_micro_usd_per_hour=0)
        queued = JobQueued(queued_at=at, reason="first_time")
        yield from _story(job_id, _submitted(number, at), funded, queued, explained)


def _submitted(number: int, at: Any) -> JobSubmitted:
    return JobSubmitted(
        user_id=f"user-{number % 50}",
        provider="local",
        priority=10,
        config={"--model_family": "flux", "--max_train_steps": 100},
        dataloader=[],
        datasets=[DatasetRequest(dataset_id="pictures", path="/pictures")],
        config_name=f"config-{number}",
        tracker_run_name=None,
        idempotency_key=None,
        account=f"user-{number % 50}",
        submitted_at=at,
    )


def _story(job_id: UUID, *events: Any, at: Any = None) -> Iterator[PastEvent]:
    for event in events:
        moment = at or events[0].submitted_at
        yield PastEvent(stream=f"job-{job_id}", event=event, correlation_id=job_id, recorded_at=moment)
