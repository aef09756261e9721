"""Storage as it runs: its own role in a migrated Postgres, a real NATS, its HTTP interface, a directory of objects."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from deploy.embedded.process import free_port
from services.storage.app import build
from services.storage.settings import Settings
from shared.contracts.envelope import CommandReply
from shared.contracts.job import Command
from shared.messaging.commands import CommandSender
from shared.messaging.connection import Bus, BusSettings
from shared.service import Runtime, running_service
from shared.settings import Secret, load
from tests.support.bus import ServiceSettings
from tests.support.log import LogDatabase

TOKEN = "storage-token-of-a-test"


@pytest.fixture
async def storage_pool(log_database: LogDatabase) -> AsyncIterator[asyncpg.Pool]:
    """Storage's own role and schema."""
    async with asyncpg.create_pool(log_database.dsn("storage"), min_size=1, max_size=12) as pool:
        yield pool


@dataclass
class StorageServer:
    """One running storage: `http` reaches its interface as the gateway would, `send` its commands."""

    runtime: Runtime
    http: httpx.AsyncClient
    root: Path
    sender: CommandSender

    async def send(self, command: Command) -> CommandReply:
        """Sends a command as the gateway."""
        return await self.sender.send("storage", command, correlation_id=uuid4(), timeout_s=60)

    def stored_files(self) -> list[str]:
        """Every file of the object store but the locks of its writers, as paths inside it."""
        files = [path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return sorted(str(path.relative_to(self.root)) for path in files)

    async def put(self, key: str, body: bytes, job_id: UUID, **headers: str) -> httpx.Response:
        """Uploads an object as the gateway does for a trainer."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.put(f"/outputs/{key}", content=body, headers={"X-Job-Id": str(job_id), **names})


@pytest.fixture
def storage_settings(service_settings: ServiceSettings, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a storage whose objects live in this test's directory; keyword arguments override."""

    def make(**extra: Any) -> Settings:
        names = {
            "STORAGE_ROOT": str(tmp_path / "objects"),
            "STORAGE_HTTP_PORT": str(free_port()),
            "STORAGE_HTTP_TOKEN": TOKEN,
            "STORAGE_PACK_LEASE_S": "1.5",
            "STORAGE_MIN_FREE_BYTES": "1",
            **{name: str(value) for name, value in extra.items()},
        }
        return load(Settings, service_settings("storage", **names))

    return make


StartStorage = Callable[..., Awaitable[StorageServer]]


@pytest.fixture
async def start_storage(
    storage_settings: Callable[..., Settings], service_settings: ServiceSettings
) -> AsyncIterator[StartStorage]:
    """`await start_storage(STORAGE_…=…)` runs one more storage until the test ends."""
    async with AsyncExitStack() as stack:
        gateway = service_settings("gateway")
        login = BusSettings(
            url=gateway["NATS_URL"], user=gateway["NATS_USER"], password=Secret(gateway["NATS_PASSWORD"])
        )
        bus = await Bus.connect(login, service="gateway")
        stack.push_async_callback(bus.close)

        async def start(**extra: Any) -> StorageServer:
            settings = storage_settings(**extra)
            runtime = await stack.enter_async_context(running_service("storage", settings, build))
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{settings.storage_http_port}",
                    headers={"Authorization": f"Bearer {TOKEN}"},
                    timeout=60,
                )
            )
            return StorageServer(
                runtime=runtime, http=client, root=Path(settings.storage_root), sender=CommandSender(bus)
            )

        yield start


@pytest.fixture
async def storage(start_storage: StartStorage) -> StorageServer:
    """A running storage with default settings."""
    return await start_storage()


def a_report(job_id: UUID, attempt_id: UUID, seq: int, type_: str = "log", **data: object) -> dict[str, object]:
    """One report line as a trainer sends it."""
    return {
        "v": 1,
        "job": str(job_id),
        "attempt": str(attempt_id),
        "seq": seq,
        "ts": "2026-11-22T01:02:03Z",
        "type": type_,
        "data": data,
    }


async def until(what: str, probe: Callable[[], Awaitable[Any]], limit_s: float = 60) -> Any:
    """The first true answer of an async probe, or AssertionError naming what never came."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while asyncio.get_running_loop().time() < deadline:
        if found := await probe():
            return found
        await asyncio.sleep(0.02)  # the pace of asking
    raise AssertionError(f"not within {limit_s} s: {what}")
