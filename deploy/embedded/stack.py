"""One start of everything: the checks, the servers, the schema, the services, and the orderly end."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg

from deploy.embedded.child_log import RotatedFile
from deploy.embedded.children import INSPECTOR, Child, Site, reachable_url
from deploy.embedded.data_dir import POSTGRES, DataDir, RunState, Secrets, mark
from deploy.embedded.nats import EmbeddedNats, NatsUser
from deploy.embedded.options import UpOptions
from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from deploy.embedded.process import EmbeddedError, free_port, port_is_free
from deploy.embedded.start_checks import check_dataset_roots, check_survivors, remember_gateway
from deploy.embedded.supervisor import Program, RestartPolicy, Supervisor
from shared.contracts.subjects import all_permissions
from shared.eventstore.migrate import MigrationError

DATABASE = "tunewright"
_SPACE_CHECK_S = 2.0
Prepare = Callable[[str, str, Mapping[str, str]], Awaitable[None]]
"""Makes the database, the roles with these passwords, and the schemas: `(superuser_dsn, database, passwords)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the operator is told when everything is ready."""

    gateway_url: str
    data_dir: Path
    postgres_home: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the stack talks to the operator."""

    say: Callable[[str], None]
    started: Callable[[Started], None]


class Stack:
    """Everything of one start. `children` and `prepare` are parameters so that the stack runs any set of programs."""

    def __init__(
        self,
        options: UpOptions,
        *,
        children: Sequence[Child],
        prepare: Prepare,
        voice: Voice,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._options = options
        self._children = tuple(children)
        self._prepare = prepare
        self._voice = voice
        self._policy = policy
        self._data = DataDir(options.data_dir)
        self._notices = RotatedFile(self._data.logs / "supervisor.log")
        self._state: RunState | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._asked_to_stop = False

    def run(self) -> None:
        """Runs until SIGTERM, SIGINT or SIGHUP and stops in order; raises EmbeddedError, or a group of them."""
        self._data.open()
        try:
            self._data.end_leftovers()
            if not port_is_free(self._options.host, self._options.port):
                raise EmbeddedError(
                    f"port {self._options.port} on {self._options.host} is taken; choose another with --port. "
                    "Nothing was started.",
                )
            check_dataset_roots(self._options, os.environ)
            check_survivors(self._data.path, reachable_url(self._options.host, self._options.port))
            asyncio.run(self._run())
        finally:
            self._data.close()

    async def _run(self) -> None:
        supervisor = Supervisor(
            self._data.logs,
            say=self._say,
            on_spawn=self._record_child,
            disk_is_full=self._data.is_full,
            policy=self._policy,
        )
        async with asyncio.TaskGroup() as group:
            self._listen_for_signals(supervisor)
            watch = group.create_task(self._watch_space())
            try:
                await self._bring_up(supervisor, group)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self._asked_to_stop:
                    raise
                self._say("Stopping. Local training runs go on; the next start finds them again.")
            finally:
                watch.cancel()
                await supervisor.stop()
                if self._postgres is not None:
                    self._postgres.stop()  # it has ended; this removes its socket's folder

    async def _bring_up(self, supervisor: Supervisor, group: asyncio.TaskGroup) -> None:
        roles = [*(child.name for child in self._children), INSPECTOR]
        secrets = self._data.secrets([SUPERUSER, *roles], [child.name for child in self._children])
        postgres = self._postgres = None if self._options.database_url else self._embedded_postgres(secrets)
        superuser_dsn = self._options.database_url or (postgres.superuser_dsn if postgres else "")
        database = DATABASE if postgres else urlsplit(superuser_dsn).path.lstrip("/") or DATABASE
        nats = None if self._options.nats_url else self._embedded_nats(secrets)
        site = self._site(secrets, superuser_dsn, database, nats)
        self._state = RunState(
            supervisor=mark(os.getpid()),
            gateway_url=site.gateway_url,
            nats_url=site.nats_url,
            log_dsn=site.database_url(INSPECTOR),
        )
        remember_gateway(self._data.path, site.gateway_url)
        await supervisor.start(group, _server_programs(postgres, nats))
        await self._prepare_database(superuser_dsn, database, {role: secrets.postgres[role] for role in roles})
        await supervisor.start(group, [child.program(site) for child in self._children])
        home = postgres.home if postgres else None
        self._voice.started(Started(gateway_url=site.gateway_url, data_dir=self._data.path, postgres_home=home))

    async def _watch_space(self) -> None:
        """Says when the disk is full and when it no longer is; a file system sends no event for that."""
        known = False
        while True:
            full = self._data.is_full()
            if full and not known:
                self._say(
                    f"The disk of {self._data.path} is full: new work is refused until there is space; "
                    "what was accepted is safe.",
                )
            if known and not full:
                self._say(f"The disk of {self._data.path} has space again.")
            known = full
            await asyncio.sleep(_SPACE_CHECK_S)

    def _embedded_postgres(self, secrets: Secrets) -> EmbeddedPostgres:
        home = self._data.postgres_home()
        if not (home / "data").exists():
            self._say(f"Making a database in {home}")
        return EmbeddedPostgres(home, superuser_password=secrets.postgres[SUPERUSER])

    def _embedded_nats(self, secrets: Secrets) -> EmbeddedNats:
        users = [
            NatsUser(
                name=allowed.user,
                password=secrets.nats[allowed.user],
                publish_allow=allowed.publish,
                subscribe_allow=allowed.subscribe,
                allow_responses=allowed.allow_responses,
            )
            for allowed in all_permissions()
            if allowed.user in secrets.nats
        ]
        return EmbeddedNats(self._data.path / "nats", users)

    def _site(self, secrets: Secrets, superuser_dsn: str, database: str, nats: EmbeddedNats | None) -> Site:
        given = urlsplit(self._options.nats_url or "")

        def nats_login(name: str) -> tuple[str, str]:
            return (given.username or name, given.password or secrets.nats[name])

        def database_url(role: str) -> str:
            return role_dsn(superuser_dsn, role, secrets.postgres[role], database)

        return Site(
            data_dir=self._data.path,
            host=self._options.host,
            port=self._options.port,
            config_dir=self._options.config_dir or self._data.path / "configs",
            storage_port=free_port(),
            storage_token=secrets.storage_http_token,
            nats_url=nats.url if nats else f"{given.scheme}://{given.netloc.rpartition('@')[2]}",
            log_format=self._options.log_format,
            environ={**os.environ, **self._options.extra_env},
            database_url=database_url,
            nats_login=nats_login,
            dataset_roots=[root.expanduser().absolute() for root in self._options.dataset_roots],
        )

    async def _prepare_database(self, superuser_dsn: str, database: str, passwords: Mapping[str, str]) -> None:
        try:
            await self._prepare(superuser_dsn, database, passwords)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, MigrationError) as error:
            raise EmbeddedError(f"cannot prepare the database: {error}") from error

    def _record_child(self, name: str, pid: int) -> None:
        if self._state is not None:
            self._state.children[name] = mark(pid)
            try:
                self._data.write_state(self._state)
            except OSError as error:  # a full disk: the next start of a child writes it again
                self._say(f"cannot write {self._data.state_path}: {error}")

    def _say(self, text: str) -> None:
        self._notices.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n".encode())
        self._voice.say(text)

    def _listen_for_signals(self, supervisor: Supervisor) -> None:
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def stop() -> None:
            if self._asked_to_stop or main is None:
                supervisor.hurry()
                return
            self._asked_to_stop = True
            main.cancel()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop)


def _server_programs(postgres: EmbeddedPostgres | None, nats: EmbeddedNats | None) -> list[Program]:
    programs: list[Program] = []
    if postgres is not None:
        programs.append(
            Program(
                name=POSTGRES,
                stage=0,
                spawn=postgres.spawn,
                is_ready=postgres.is_ready,
                stop_signal=signal.SIGINT,
                force_signal=signal.SIGQUIT,
                stop_timeout_s=30,
            ),
        )
    if nats is not None:
        programs.append(Program(name="nats", stage=1, spawn=nats.spawn, is_ready=nats.is_ready))
    return programs


def role_dsn(superuser_dsn: str, role: str, password: str, database: str) -> str:
    """The same server and database as another role."""
    found = urlsplit(superuser_dsn)
    where = found.netloc.rpartition("@")[2]
    return found._replace(netloc=f"{role}:{quote(password, safe='')}@{where}", path=f"/{database}").geturl()
