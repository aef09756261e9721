"""Packing datasets end to end: command, durable work, tar in the object store, fact in the log."""

import asyncio
import hashlib
import io
import signal
import sys
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.storage.app import build
from services.storage.domain.dataset import stream_of
from services.storage.packing import MAX_TRIES
from services.storage.settings import Settings
from shared.contracts import catalogue
from shared.contracts.admin import RebuildProjections
from shared.contracts.artifact import DatasetsPacked, DatasetsRefused, PackDatasets
from shared.contracts.envelope import CommandEnvelope
from shared.contracts.job import DatasetRequest, Event
from shared.eventstore.api import EventStore
from shared.service import running_service
from tests.integration.storage.conftest import TOKEN, StartStorage, StorageServer, until
from tests.support.bus import ServiceSettings

MIB = 1024**2
ROOT = Path(__file__).parents[3]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "pictures"
    (folder / "sub").mkdir(parents=True)
    for index in range(30):
        (folder / f"{index}.png").write_bytes(bytes([index]) * 1000)
        (folder / "sub" / f"{index}.txt").write_text(f"digit {index}", encoding="utf-8")
    return folder


def copied(folder: Path) -> Path:
    """The same files elsewhere, written in another order."""
    copy = folder.parent / "copy"
    (copy / "sub").mkdir(parents=True)
    for path in sorted(folder.rglob("*.*"), reverse=True):
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    return copy


def a_pack(*paths: Path, job_id: UUID | None = None) -> PackDatasets:
    datasets = [DatasetRequest(dataset_id=f"set-{index}", path=str(path)) for index, path in enumerate(paths)]
    return PackDatasets(job_id=job_id or uuid4(), datasets=datasets)


def an_envelope() -> CommandEnvelope:
    return CommandEnvelope(command_id=uuid4(), correlation_id=uuid4(), payload=msgspec.Raw(b"{}"))


async def results(store: EventStore, job_id: UUID) -> list[Event]:
    history = await store.read_stream(stream_of(job_id))
    assert all(recorded.correlation_id == job_id for recorded in history)
    return [event for event in map(catalogue.decode, history) if event is not None]


async def result_of(storage: StorageServer, command: PackDatasets) -> Any:
    async def probe() -> list[Event]:
        return await results(storage.runtime.store, command.job_id)

    (event,) = await until("the datasets are packed or refused", probe)
    return event


async def test_a_packed_dataset_is_a_fact_and_its_tar_is_served(storage: StorageServer, pictures: Path) -> None:
    command = a_pack(pictures)
    reply = await storage.send(command)
    assert reply.data["accepted"] is True
    packed = await result_of(storage, command)
    assert isinstance(packed, DatasetsPacked)
    (dataset,) = packed.datasets
    assert (dataset.dataset_id, dataset.file_count) == ("set-0", 60)

    got = await storage.http.get(f"/datasets/{dataset.sha256}")
    assert got.headers["Content-Type"] == "application/x-tar"
    assert (hashlib.sha256(got.content).hexdigest(), len(got.content)) == (dataset.sha256, dataset.size_bytes)
    with tarfile.open(fileobj=io.BytesIO(got.content)) as tar:
        assert len(tar.getnames()) == 60
    part = await storage.http.get(f"/datasets/{dataset.sha256}", headers={"Range": "bytes=512-1023"})
    assert (part.status_code, part.content) == (206, got.content[512:1024])


async def test_the_same_files_are_stored_once_for_any_number_of_jobs(storage: StorageServer, pictures: Path) -> None:
    copy = copied(pictures)
    commands = [a_pack(pictures), a_pack(copy, pictures)]
    for command in commands:
        await storage.send(command)
    digests = {dataset.sha256 for command in commands for dataset in (await result_of(storage, command)).datasets}
    assert len(digests) == 1
    assert storage.stored_files() == [f"datasets/sha256/{digests.pop()}"]


async def test_a_repeat_before_and_after_the_result_changes_nothing(storage: StorageServer, pictures: Path) -> None:
    command = a_pack(pictures)
    await asyncio.gather(*(storage.send(command) for _ in range(5)))
    first = await result_of(storage, command)
    (pictures / "new.png").write_bytes(b"later")
    reply = await storage.send(command)
    assert reply.data == {"accepted": True, "done": True}
    assert await results(storage.runtime.store, command.job_id) == [first]


async def test_a_job_without_datasets_is_packed_at_once(storage: StorageServer) -> None:
    command = a_pack()
    await storage.send(command)
    assert (await result_of(storage, command)).datasets == []


async def test_a_link_out_of_the_roots_is_refused_with_its_path(start_storage: StartStorage, pictures: Path) -> None:
    storage = await start_storage(STORAGE_DATASET_ROOTS=f"/nowhere:{pictures.parent}")
    (pictures / "sub" / "shadow").symlink_to("/etc/shadow")
    command = a_pack(pictures)
    await storage.send(command)
    refused = await result_of(storage, command)
    assert isinstance(refused, DatasetsRefused)
    assert refused.dataset_id == "set-0"
    assert str(pictures / "sub" / "shadow") in refused.message
    assert refused.advice
    assert storage.stored_files() == []


async def test_one_unusable_dataset_refuses_the_job(start_storage: StartStorage, pictures: Path) -> None:
    storage = await start_storage(STORAGE_DATASET_ROOTS=pictures.parent)
    command = a_pack(pictures, pictures.parent / "missing")
    await storage.send(command)
    refused = await result_of(storage, command)
    assert (refused.dataset_id, str(pictures.parent / "missing") in refused.message) == ("set-1", True)


async def test_a_dataset_over_the_limit_is_refused(start_storage: StartStorage, pictures: Path) -> None:
    storage = await start_storage(STORAGE_MAX_DATASET_BYTES=1000)
    command = a_pack(pictures)
    await storage.send(command)
    refused = await result_of(storage, command)
    assert str(pictures) in refused.message
    assert "STORAGE_MAX_DATASET_BYTES" in refused.advice


async def test_a_full_disk_is_tried_again_and_says_so(start_storage: StartStorage, pictures: Path) -> None:
    storage = await start_storage(STORAGE_MIN_FREE_BYTES=10**18)
    command = a_pack(pictures)
    await storage.send(command)
    pool = storage.runtime.pool

    async def last_error() -> str | None:
        return await pool.fetchval("SELECT last_error FROM pack_jobs WHERE job_id = $1", command.job_id)

    assert "no room" in await until("the first try is over", last_error)
    await pool.execute("UPDATE pack_jobs SET tries = $1, not_before = now()", MAX_TRIES - 1)
    refused = await result_of(storage, command)
    assert isinstance(refused, DatasetsRefused)
    assert "no room" in refused.message


async def test_a_stopped_storage_gives_its_work_back_at_once(
    storage_settings: Callable[..., Settings], storage_pool: asyncpg.Pool, start_storage: StartStorage, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    with (large / "zeros").open("wb") as file:
        file.truncate(600 * MIB)
    command = a_pack(large)
    settings = storage_settings(STORAGE_PACK_LEASE_S=3600)
    async with running_service("storage", settings, build):
        await storage_pool.execute(
            "INSERT INTO pack_jobs (job_id, command, envelope, not_before) VALUES ($1, $2, $3, $4)",
            command.job_id,
            msgspec.json.encode(command),
            msgspec.json.encode(an_envelope()),
            datetime.now(UTC),
        )
        await until("packing has begun", lambda: has_partial(Path(settings.storage_root)))
    row = await storage_pool.fetchrow("SELECT claimed_by, tries, done_at FROM pack_jobs")
    assert row is not None
    assert tuple(row) == (None, 0, None)
    assert await has_partial(Path(settings.storage_root)) is False
    storage = await start_storage()
    assert isinstance(await result_of(storage, command), DatasetsPacked)


async def test_a_killed_storage_is_followed_by_one_that_goes_on(
    service_settings: ServiceSettings,
    storage_settings: Callable[..., Settings],
    start_storage: StartStorage,
    pictures: Path,
    tmp_path: Path,
) -> None:
    storage = await start_storage(STORAGE_PACK_PARALLELISM=0)
    with (pictures / "zeros").open("wb") as file:
        file.truncate(600 * MIB)
    command = a_pack(pictures)
    await storage.send(command)

    settings = storage_settings()
    environment = service_settings(
        "storage",
        STORAGE_ROOT=settings.storage_root,
        STORAGE_HTTP_PORT=str(settings.storage_http_port),
        STORAGE_HTTP_TOKEN=TOKEN,
        STORAGE_PACK_LEASE_S="1.5",
    )
    with (tmp_path / "killed.log").open("wb") as log:
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.storage", cwd=ROOT, env=dict(environment), stdout=log, stderr=log
        )
        await until("packing has begun", lambda: has_partial(Path(settings.storage_root)))
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
    assert await results(storage.runtime.store, command.job_id) == []

    heir = await start_storage()
    packed = await result_of(heir, command)
    assert isinstance(packed, DatasetsPacked)
    assert packed.datasets[0].file_count == 61
    assert await has_partial(Path(settings.storage_root)) is False


async def has_partial(root: Path) -> bool:
    return any((root / "incoming").glob("*/*"))


async def test_read_models_of_objects_come_out_equal_when_refolded(storage: StorageServer, pictures: Path) -> None:
    command = a_pack(pictures)
    await storage.send(command)
    await result_of(storage, command)
    for body in (b"one", b"two"):
        await storage.put(f"{command.job_id}/k", body, command.job_id)
    head = await storage.runtime.store.head()
    assert await storage.runtime.consumers["storage__objects"].wait_for(head, 60)
    (rebuilt,) = (await storage.send(RebuildProjections())).data["projections"]
    assert (rebuilt["name"], rebuilt["rows"], rebuilt["equal"]) == ("objects", 2, True)
    buckets = (await storage.http.get("/")).json()["Buckets"]
    assert [bucket["Name"] for bucket in buckets] == ["datasets", "outputs"]
    (listed,) = (await storage.http.get("/datasets")).json()["Contents"]
    assert storage.stored_files()[0] == f"datasets/sha256/{listed['Key']}"
