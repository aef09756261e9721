"""The real system with a proxy on every way between its parts: Postgres, NATS, relay, five services, two bridges."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import asyncpg
import httpx

from deploy.embedded.children import CHILDREN, SUPERVISOR_SECRETS
from deploy.embedded.nats import EmbeddedNats
from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from deploy.embedded.process import LOOPBACK, free_port
from shared.contracts.subjects import DURABLES, Durable
from shared.eventstore.migrate import migrate
from tests.fault import trainer_program
from tests.fault.faults import Director
from tests.fault.fleet import Fleet, Plan
from tests.fault.http_frames import HttpTalk
from tests.fault.links import Link, Talk, Witness
from tests.fault.nats_frames import NatsTalk
from tests.fault.postgres_frames import PostgresTalk
from tests.integration.provider_bridge.stand_in_trainer import end_all
from tests.support.bus import bus_password, bus_users
from tests.support.log import PASSWORDS

DATABASE = "tunewright"
LEASE_S = 2.5
PRICE_MICRO_USD_PER_HOUR = 3_600_000
SECOND_BRIDGE = "provider_bridge-2"
_STORAGE_TOKEN = "fault"
_READY_S = 180.0
_LOOK_S = 0.03


class FaultSystem:
    """One running system. `director` is the witness of every link."""

    def __init__(self, home: Path, tasks: asyncio.TaskGroup) -> None:
        self.home = home
        self.bridge_state_dir = home / "bridge"
        self.datasets = home / "datasets"
        self.director = Director(self, tasks)
        self.fleet = Fleet(home / "logs", self._note)
        self._postgres = EmbeddedPostgres(home / "pg")
        self._nats = EmbeddedNats(home / "nats", bus_users())
        self._servers_away: set[str] = set()
        self._storage_port, self._gateway_port = free_port(), free_port()
        self.client_link = self._http_link("client", "gateway", self._gateway_port)
        self._trainer_link = self._http_link("trainer", "gateway", self._gateway_port)
        self._storage_link = self._http_link("gateway", "storage", self._storage_port)
        self._links = [self.client_link, self._trainer_link, self._storage_link]

    @property
    def superuser_dsn(self) -> str:
        """Full power over the log, past every proxy."""
        return self._postgres.dsn(SUPERUSER, self._postgres.superuser_password, DATABASE)

    @property
    def gateway_url(self) -> str:
        """The gateway itself, past every proxy."""
        return f"http://{LOOPBACK}:{self._gateway_port}"

    @property
    def proxied_gateway_url(self) -> str:
        """The gateway as clients under fault reach it."""
        return f"http://{LOOPBACK}:{self.client_link.port}"

    def _note(self, process: str, text: str) -> None:
        self.director.scene.note(process, text)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts everything and returns when the gateway says that all are there."""
        self.home.mkdir(exist_ok=True)
        self.home.chmod(0o711)
        for folder in ("logs", "datasets", "bridge", "objects", "configs"):
            (self.home / folder).mkdir(exist_ok=True)
        self._postgres.start()
        self._nats.start()
        await migrate(self._postgres.superuser_dsn, DATABASE, PASSWORDS)
        for link in (self._trainer_link, self._storage_link, self.client_link):
            await link.open()
        for child in CHILDREN:
            await self._launch(child.name, child.name, child.arguments)
        await self._launch(SECOND_BRIDGE, "provider_bridge", ("-m", "services.provider_bridge"))
        await self.ready()

    async def stop(self) -> None:
        """Ends everything; what outlives its bridge too."""
        await self.fleet.stop()
        for link in self._links:
            link.close()
        end_all(self.bridge_state_dir)
        self._nats.stop()
        self._postgres.stop()

    async def ready(self) -> None:
        """Returns when every part answers."""
        async with httpx.AsyncClient(base_url=self.gateway_url, timeout=5) as client:
            async with asyncio.timeout(_READY_S):
                while True:
                    with suppress(httpx.TransportError):
                        if (await client.get("/api/cloud/health/ready")).is_success:
                            return
                    await asyncio.sleep(_LOOK_S)

    # ---- what a director may do (faults.Stage) -----------------------------------------------------------------------

    async def kill(self, process: str, away_s: float) -> None:
        """SIGKILL; a client or a trainer is not ours to kill, so what it talks to is."""
        await self.fleet.kill("gateway" if process in {"client", "trainer"} else process, away_s)

    async def pause(self, process: str, for_s: float) -> None:
        """SIGSTOP and SIGCONT, of the gateway where the link is a client's or a trainer's."""
        await self.fleet.pause("gateway" if process in {"client", "trainer"} else process, for_s)

    async def kill_server(self, server: str, away_s: float) -> None:
        """SIGKILL of Postgres, NATS or a service; started again after `away_s`."""
        if server not in {"postgres", "nats"}:
            await self.fleet.kill(server, away_s)
            return
        if server in self._servers_away:
            return
        self._servers_away.add(server)
        try:
            await self._replace(self._postgres if server == "postgres" else self._nats, server, away_s)
        finally:
            self._servers_away.discard(server)

    async def _replace(self, embedded: EmbeddedPostgres | EmbeddedNats, name: str, away_s: float) -> None:
        child = embedded.process
        assert child is not None
        child.send_signal(signal.SIGKILL)
        self.director.scene.note(name, "SIGKILL")
        await asyncio.to_thread(child.wait)
        await asyncio.sleep(away_s)
        embedded.spawn()
        async with asyncio.timeout(_READY_S):
            while not await asyncio.to_thread(embedded.is_ready):  # noqa: ASYNC110 - another process's readiness
                await asyncio.sleep(_LOOK_S)
        self.director.scene.note(name, "is back")

    # ---- how a process is started ------------------------------------------------------------------------------------

    async def _launch(self, name: str, role: str, arguments: tuple[str, ...]) -> None:
        postgres = self._link(name, "postgres", self._postgres.port, PostgresTalk)
        nats = self._link(name, "nats", self._nats.port, NatsTalk)
        for link in (postgres, nats):
            await link.open()
        environment = {
            **{key: value for key, value in os.environ.items() if key not in SUPERVISOR_SECRETS},
            "DATABASE_URL": f"postgresql://{role}:{quote(PASSWORDS[role])}@{LOOPBACK}:{postgres.port}/{DATABASE}?sslmode=disable",
            "NATS_URL": f"nats://{LOOPBACK}:{nats.port}",
            "NATS_USER": role,
            "NATS_PASSWORD": bus_password(role),
            "LOG_FORMAT": "console",
            "PYTHONUNBUFFERED": "1",
            **self._settings().get(role, {}),
        }
        self.fleet.start(Plan(name=name, arguments=arguments, environment=environment))

    def _settings(self) -> dict[str, dict[str, str]]:
        trainer = trainer_program.install(self.home)
        return {
            "storage": {
                "STORAGE_ROOT": str(self.home / "objects"),
                "STORAGE_HTTP_PORT": str(self._storage_port),
                "STORAGE_HTTP_TOKEN": _STORAGE_TOKEN,
                "STORAGE_DATASET_ROOTS": str(self.datasets),
                "STORAGE_PACK_LEASE_S": "2",
            },
            "billing": {
                "BILLING_LOCAL_MICRO_USD_PER_HOUR": str(PRICE_MICRO_USD_PER_HOUR),
                "BILLING_DEFAULT_FLOOR_MICRO_USD": "-5000000000",
            },
            "provider_bridge": {
                "BRIDGE_GATEWAY_URL": f"http://{LOOPBACK}:{self._trainer_link.port}",
                "BRIDGE_STATE_DIR": str(self.bridge_state_dir),
                "BRIDGE_TRAINER_PYTHON": str(trainer),
                "BRIDGE_TRAINER_DIR": str(self.home),
                "BRIDGE_LEASE_S": str(LEASE_S),
                "BRIDGE_RECONCILE_INTERVAL_S": "0.25",
                "BRIDGE_SWEEP_INTERVAL_S": "2",
                "BRIDGE_CANCEL_GRACE_S": "3",
                "BRIDGE_REPORT_GRACE_S": "2",
            },
            "gateway": {
                "GATEWAY_HOST": LOOPBACK,
                "GATEWAY_PORT": str(self._gateway_port),
                "GATEWAY_CONFIG_DIR": str(self.home / "configs"),
                "GATEWAY_STORAGE_URL": f"http://{LOOPBACK}:{self._storage_link.port}",
                "GATEWAY_STORAGE_TOKEN": _STORAGE_TOKEN,
            },
        }

    def _link(self, process: str, server: str, port: int, talk: Callable[[], Talk]) -> Link:
        link = Link(process, server, port, talk=talk, witness=self.director.witness)
        self._links.append(link)
        return link

    def _http_link(self, process: str, server: str, port: int) -> Link:
        witness: Witness = self.director.witness
        return Link(process, server, port, talk=partial(HttpTalk, server), witness=witness)


@asynccontextmanager
async def running_system(home: Path) -> AsyncGenerator[FaultSystem]:
    """A system that runs inside the block. `home` must be short, and open to the user who runs Postgres."""
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        system = FaultSystem(home, tasks)
        stack.push_async_callback(system.stop)
        await system.start()
        watching = tasks.create_task(system.fleet.watch())
        stack.callback(watching.cancel)
        yield system


_LEFT_BEHIND = """
select $1::text || ' has handled up to ' || c.position || ', the log has ' || h.head
from {schema}.checkpoint c,
     (select coalesce(max(global_position), 0) as head from log.events where category = any($2::text[])) h
where c.durable = $1 and c.position < h.head
"""

_UNFINISHED = """
with jobs as (select id from unnest($1::uuid[]) as id)
select 'job ' || id || ' has not ended' from jobs
where not exists (
    select from log.events e where e.stream = 'job-' || id
    and e.type = any('{job.completed.v1,job.failed.v1,job.cancelled.v1}')
)
union all
select distinct a.stream || ' has not ended' from log.events a
where a.correlation_id = any($1::uuid[]) and a.category = 'attempt' and not exists (
    select from log.events e where e.stream = a.stream
    and e.type = any('{attempt.succeeded.v1,attempt.failed.v1,attempt.cancelled.v1,attempt.lost.v1}')
)
"""


async def unrest(connection: asyncpg.Connection, job_ids: list[UUID]) -> list[str]:
    """What is still to happen: jobs and attempts without an end, durables behind the log. One look at one moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = [row[0] for row in await connection.fetch(_UNFINISHED, job_ids)]
        for durable in DURABLES:
            found += await _left_behind(connection, durable)
    return found


async def _left_behind(connection: asyncpg.Connection, durable: Durable) -> list[str]:
    query = _LEFT_BEHIND.format(schema=durable.service)
    return [row[0] for row in await connection.fetch(query, durable.name, list(durable.categories))]
