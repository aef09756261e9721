"""The whole installation of one seed: processes under a supervisor, the common log, bus and cloud."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg

from services.gateway.domain.tokens import check_upload_place, require_live
from services.storage.outbound.objects import address
from shared.contracts import catalogue
from shared.contracts.artifact import ArtifactStored
from shared.contracts.job import JobCancelled, JobCompleted, JobFailed, JobSubmitted
from shared.contracts.run import ReportAck
from shared.contracts.subjects import DURABLES
from shared.eventstore.memory import MemoryEventStore
from shared.eventstore.relay import Relay
from shared.messaging.commands import CommandSender
from shared.messaging.connection import Bus
from shared.service import Consuming, Runtime, serving
from tests.sim.bus import SimClient, SimNats, SimPull
from tests.sim.chaos import Chaos
from tests.sim.connection import MemoryPool
from tests.sim.database import Database
from tests.sim.process import Process, moment
from tests.sim.provider import Cloud, Machine
from tests.sim.services import PACE, Blobs, Setup, World, build
from tests.sim.store import SimStore
from tests.sim.trainer import FATES, ConnectionLost, Trainer

T = TypeVar("T")

_REQUEST_S = 30.0
_MAX_SKEW_S = 2.0
_JOB_BEGINS = catalogue.event_type(JobSubmitted)
_JOB_ENDS = {catalogue.event_type(end) for end in (JobCompleted, JobFailed, JobCancelled)}


class SimBus:
    """What a service sees of its connection to NATS."""

    is_connected = True

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.closed = asyncio.Event()


class System:
    """Starts every process, starts it again when it died, and carries requests from outside to one that lives."""

    def __init__(self, chaos: Chaos, setup: Setup) -> None:
        loop = asyncio.get_running_loop()
        self.chaos = chaos
        self.log = MemoryEventStore(lambda: moment(loop.time()), safety_poll_s=4.0)
        self.database = Database(self.log, lambda: moment(loop.time()))
        self.nats = SimNats(chaos)
        self.cloud = Cloud(chaos, self._run_trainer, self.log)
        self.processes: dict[str, Process] = {}
        self.bugs: list[str] = []
        self.trainers: list[Trainer] = []
        self.setup = setup
        self.calm = Chaos(0, loop)
        """Strikes nowhere: for folding again what was folded."""
        self.calm.ceased = True
        self.calm.is_instant = True
        self._world = World(setup=setup, cloud=self.cloud, blobs=Blobs())
        self._lives = 0
        self._stopped = False
        self._open_jobs: dict[str, None] = {}
        self._counted = 0

    def start(self) -> None:
        """Every replica of every service, and the relay."""
        for service, count in self.setup.replicas.items():
            for number in range(count):
                self._start(f"{service}/{number}")

    def stop(self) -> None:
        """Kills everything for good."""
        self._stopped = True
        for process in list(self.processes.values()):
            process.crash()

    def _start(self, name: str) -> None:
        if self._stopped:
            return
        self._lives += 1
        skew_s = self.chaos.between(-_MAX_SKEW_S, _MAX_SKEW_S) if self.chaos.level else 0.0
        process = Process(f"{name}.{self._lives}", self.chaos, skew_s=skew_s, died=self._died)
        self.processes[name] = process
        main = process.spawn(self._main(process))
        main.add_done_callback(partial(self._ended, process))

    def _died(self, process: Process) -> None:
        self.chaos.note(f"{process.name} is dead")
        name = process.name.partition(".")[0]
        asyncio.get_running_loop().call_later(process.down_s(), self._start, name)

    def _ended(self, process: Process, main: asyncio.Task[None]) -> None:
        if not process.alive:
            return
        error = main.exception() if not main.cancelled() else None
        self.bugs.append(f"{process.name} ended by itself: {_reasons(error)}")
        process.crash()

    async def _main(self, process: Process) -> None:
        client = SimClient(self.nats, process)
        bus = cast("Bus", cast("Any", SimBus(client)))
        pool = MemoryPool(self.database, process)
        asyncpg_pool = cast("asyncpg.Pool", cast("Any", pool))
        stop = asyncio.Event()
        if process.service == "relay":
            await Relay(asyncpg_pool, bus).run(stop)
            return
        runtime = Runtime(
            service=process.service,
            pool=asyncpg_pool,
            store=SimStore(self.database, process),
            bus=bus,
            sender=CommandSender(bus),
            clock=process.clock,
            stop=stop,
        )

        async def connect(_: str) -> asyncpg.Connection:
            return cast("asyncpg.Connection", cast("Any", await pool.connect()))

        parts = build(process.service, runtime, process, self._world)
        pull = cast("Any", partial(SimPull, client))
        async with serving(runtime, parts, Consuming(connect=connect, pull=pull, pace=PACE)):
            await stop.wait()

    # ---- requests from outside ---------------------------------------------------------------------------------------

    async def request(self, service: str, place: str, ask: Callable[[Any], Awaitable[T]]) -> T:
        """An HTTP request to any living replica; ConnectionLost when nobody knows whether it was carried out."""
        fault = self.chaos.fault(f"http:{place}", ("request lost", "answer lost"))
        await asyncio.sleep(self.chaos.between(0.0005, 0.02))
        ready = [one for one in self.processes.values() if one.service == service and one.alive and one.parts]
        if not ready or fault == "request lost":
            await asyncio.sleep(0.1)
            raise ConnectionLost
        process = self.chaos.random.choice(ready)

        async def serve() -> T:
            await process.hold()
            return await ask(process.parts)

        task = process.spawn(serve())
        task.add_done_callback(_seen)
        await asyncio.wait([task], timeout=_REQUEST_S)
        if not task.done():
            task.cancel()
            raise ConnectionLost
        if task.cancelled() or fault == "answer lost":
            raise ConnectionLost
        return task.result()

    async def report(self, attempt_id: UUID, token: str, body: bytes) -> ReportAck:
        """A trainer's batch of lines."""

        async def ask(doors: Any) -> ReportAck:
            attempt = await doors.intake.admit(attempt_id, token)
            return await doors.intake.take(attempt, body)

        return await self.request("gateway", "report", ask)

    async def upload(self, job_id: UUID, attempt_id: UUID, token: str, key: str, content: bytes) -> None:
        """A trainer's output: through the gateway's checks into storage."""

        async def admit(doors: Any) -> None:
            attempt = await doors.access.of_attempt(attempt_id, token)
            require_live(attempt, await doors.access.newest_number(attempt.job_id))
            check_upload_place("outputs", key)

        await self.request("gateway", "upload", admit)
        await self.request("storage", "object", partial(self._keep, job_id, attempt_id, key, content))

    async def _keep(self, job_id: UUID, attempt_id: UUID, key: str, content: bytes, storage: Any) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self._world.blobs.sizes[address("outputs", digest)] = len(content)
        stored = ArtifactStored(
            job_id=job_id,
            attempt_id=attempt_id,
            bucket="outputs",
            object_key=key,
            name=key.rpartition("/")[2],
            size_bytes=len(content),
            sha256=digest,
            content_type="application/octet-stream",
            stored_at=storage.clock(),
        )
        await storage.store_artifact(stored)

    async def _run_trainer(self, machine: Machine) -> None:
        random = Random(self.chaos.random.getrandbits(64))  # noqa: S311 - chance, no secret
        fate = "done" if self.chaos.ceased else random.choice(FATES)
        trainer = Trainer(machine=machine, gateway=self, chaos=self.chaos, random=random, fate=fate)
        self.trainers.append(trainer)
        await trainer.run()

    # ---- rest --------------------------------------------------------------------------------------------------------

    def is_at_rest(self) -> bool:
        """Nothing lives at the provider, and every consumer and the relay have seen the whole log."""
        if self.cloud.starting or any(machine.lives for machine in self.cloud.machines):
            return False
        head = len(self.log.events)
        self._count_jobs()
        stream = self.nats.stream
        if self._open_jobs or stream is None or len(stream.messages) != head:
            return False
        for durable in DURABLES:
            row = self.database.table(durable.service, "checkpoint").get(durable.name)
            if row is None or row["position"] < head:
                return False
        return all(process.alive and not process.paused for process in self.processes.values())

    def _count_jobs(self) -> None:
        """Keeps the streams of the jobs that have not ended."""
        for recorded in self.log.events[self._counted :]:
            if recorded.type == _JOB_BEGINS:
                self._open_jobs[recorded.stream] = None
            elif recorded.type in _JOB_ENDS:
                self._open_jobs.pop(recorded.stream, None)
        self._counted = len(self.log.events)

    def what_is_late(self) -> str:
        """Why it is not at rest."""
        head = len(self.log.events)
        stream = self.nats.stream
        late = [*self._open_jobs]
        late += [f"machine {machine.ref}" for machine in self.cloud.machines if machine.lives]
        late += [f"published {len(stream.messages) if stream else 0} of {head}"]
        for durable in DURABLES:
            row = self.database.table(durable.service, "checkpoint").get(durable.name)
            if row is None or row["position"] < head:
                late.append(f"{durable.name} at {row and row['position']}")
        late += [f"{one.name} down" for one in self.processes.values() if not one.alive or one.paused]
        return ", ".join(late)


def _seen(task: asyncio.Task[Any]) -> None:
    """Its caller may be gone: then nobody misses what it raised."""
    if not task.cancelled():
        task.exception()


def _reasons(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return "; ".join(_reasons(inner) for inner in group.exceptions)
    return repr(error)
