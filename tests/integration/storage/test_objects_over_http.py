"""Bytes over HTTP, facts in the log: what is stored, what is refused, and what a refusal leaves behind (nothing)."""

import asyncio
import hashlib
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.storage.handlers import artifact_stream
from shared.contracts import catalogue
from shared.contracts.artifact import ArtifactStored, ConfirmArtifacts
from shared.contracts.job import ArtifactRef
from shared.slots import Slot
from tests.integration.storage.conftest import TOKEN, StartStorage, StorageServer, until

MIB = 1024**2
BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def facts(storage: StorageServer, key: str) -> list[ArtifactStored]:
    history = await storage.runtime.store.read_stream(artifact_stream("outputs", key))
    return [event for event in map(catalogue.decode, history) if isinstance(event, ArtifactStored)]


async def raw_put(storage: StorageServer, target: str) -> tuple[int, bytes]:
    """A PUT whose path no client library has tidied up; its status and body."""
    address = storage.http.base_url
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"PUT {target} HTTP/1.1\r\nHost: storage\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    writer.write(f"{head}X-Job-Id: {uuid4()}\r\nContent-Length: 1\r\n\r\nx".encode())
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    headers, _, body = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), body


async def test_a_put_is_stored_recorded_and_read_back(storage: StorageServer) -> None:
    job_id, attempt_id = uuid4(), uuid4()
    key = f"{job_id}/sub dir/modèle.safetensors"
    answer = await storage.put(
        f"{job_id}/sub%20dir/mod%C3%A8le.safetensors",
        BODY,
        job_id,
        X_Attempt_Id=str(attempt_id),
        X_Content_SHA256=SHA256,
        Content_Type="application/x-weights",
    )
    etag = f'"{hashlib.md5(BODY, usedforsecurity=False).hexdigest()}"'
    assert (answer.status_code, answer.headers["ETag"]) == (200, etag)
    assert answer.json() == {"ETag": etag, "Key": key, "Bucket": "outputs"}

    (fact,) = await facts(storage, key)
    assert (fact.job_id, fact.attempt_id, fact.object_key) == (job_id, attempt_id, key)
    assert (fact.sha256, fact.size_bytes, fact.name) == (SHA256, len(BODY), "modèle.safetensors")

    got = await storage.http.get(f"/outputs/{key}")
    assert (got.status_code, got.content, got.headers["Content-Type"]) == (200, BODY, "application/x-weights")
    assert (got.headers["ETag"], got.headers["X-Content-SHA256"]) == (etag, SHA256)


async def test_the_same_content_again_adds_no_fact_and_other_content_is_the_next_version(
    storage: StorageServer,
) -> None:
    job_id = uuid4()
    for body in (b"one", b"one", b"two"):
        assert (await storage.put("k", body, job_id)).status_code == 200
    assert [fact.sha256 for fact in await facts(storage, "k")] == [sha256_of(b"one"), sha256_of(b"two")]
    assert (await storage.http.get("/outputs/k")).content == b"two"
    assert len(storage.stored_files()) == 2


async def test_a_key_of_another_job_is_not_overwritten(storage: StorageServer) -> None:
    await storage.put("k", b"mine", uuid4())
    answer = await storage.put("k", b"theirs", uuid4())
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_object_key")
    assert (await storage.http.get("/outputs/k")).content == b"mine"


async def test_a_digest_mismatch_stores_nothing(storage: StorageServer) -> None:
    answer = await storage.put("k", BODY, uuid4(), X_Content_SHA256="0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (400, "digest_mismatch")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert storage.stored_files() == []
    assert await facts(storage, "k") == []


async def test_a_mismatch_leaves_the_content_the_key_had(storage: StorageServer) -> None:
    job_id = uuid4()
    await storage.put("k", b"good", job_id)
    await storage.put("k", b"bad", job_id, X_Content_SHA256="0" * 64)
    assert (await storage.http.get("/outputs/k")).content == b"good"


async def test_a_client_that_goes_away_leaves_nothing(storage: StorageServer) -> None:
    half_sent = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield bytes(20 * MIB)
        half_sent.set()
        await asyncio.Event().wait()

    async def has_partial() -> bool:
        return bool(storage.stored_files())

    async def has_none() -> bool:
        return not storage.stored_files()

    async with asyncio.TaskGroup() as group:
        headers = {"X-Job-Id": str(uuid4()), "Content-Length": str(40 * MIB)}
        upload = group.create_task(storage.http.put("/outputs/k", content=half(), headers=headers))
        await half_sent.wait()
        await until("the partial file is there", has_partial)
        upload.cancel()
    await until("the partial file is gone", has_none)
    assert await facts(storage, "k") == []


async def test_three_hundred_mebibytes_pass_through_flat_memory(storage: StorageServer) -> None:
    block = bytes(range(256)) * 4096
    count = 300
    digest = hashlib.sha256()

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(count):
            digest.update(block)
            yield block

    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await storage.http.put("/outputs/large", content=blocks(), headers={"X-Job-Id": str(uuid4())})
    assert answer.status_code == 200, answer.text
    received = hashlib.sha256()
    async with storage.http.stream("GET", "/outputs/large") as got:
        async for part in got.aiter_bytes():
            received.update(part)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert received.hexdigest() == digest.hexdigest() == answer.headers["X-Content-SHA256"]
    assert grown_mib < 120, f"peak memory grew by {grown_mib:.0f} MiB for a {count} MiB object"


async def test_ranges_and_head(storage: StorageServer) -> None:
    body = bytes(range(256)) * 20_000
    await storage.put("k", body, uuid4())
    for header, expected in (("bytes=10-19", body[10:20]), ("bytes=-5", body[-5:]), ("bytes=5000000-", body[5000000:])):
        got = await storage.http.get("/outputs/k", headers={"Range": header})
        assert (got.status_code, got.content) == (206, expected)
        assert got.headers["Content-Range"].endswith(f"/{len(body)}")
    outside = await storage.http.get("/outputs/k", headers={"Range": f"bytes={len(body)}-"})
    assert (outside.status_code, outside.headers["Content-Range"]) == (416, f"bytes */{len(body)}")
    head = await storage.http.head("/outputs/k")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(body)), b"")


async def test_an_empty_object_is_an_object(storage: StorageServer) -> None:
    assert (await storage.put("empty", b"", uuid4())).status_code == 200
    got = await storage.http.get("/outputs/empty")
    assert (got.status_code, got.content, got.headers["Content-Length"]) == (200, b"", "0")


async def test_lists_come_from_the_projection(storage: StorageServer) -> None:
    mine, other = uuid4(), uuid4()
    await storage.put(f"{mine}/b", b"bb", mine)
    await storage.put(f"{mine}/a", b"a", mine)
    await storage.put(f"{other}/c", b"c", other)
    head = await storage.runtime.store.head()
    assert await storage.runtime.consumers["storage__objects"].wait_for(head, 60)

    buckets = (await storage.http.get("/")).json()
    assert [(row["Name"], row["Size"], row["FileCount"]) for row in buckets["Buckets"]] == [("outputs", 4, 3)]
    contents = (await storage.http.get("/outputs", params={"job_id": str(mine)})).json()
    assert [(row["Key"], row["Size"]) for row in contents["Contents"]] == [(f"{mine}/a", 1), (f"{mine}/b", 2)]
    page = (await storage.http.get("/outputs", params={"prefix": f"{mine}/", "after": f"{mine}/a"})).json()
    assert [row["SHA256"] for row in page["Contents"]] == [sha256_of(b"bb")]


@pytest.mark.parametrize("path", ["a/../b", "%2e%2e/b", "a//b", "/b", "a%00b", "a%5Cb", "a/./b", "x" * 1025, "%ff"])
async def test_a_dangerous_key_is_refused_before_a_byte_is_read(storage: StorageServer, path: str) -> None:
    status, body = await raw_put(storage, f"/outputs/{path}")
    assert (status, json.loads(body)["code"]) == (400, "invalid_object_key")
    assert storage.stored_files() == []


@pytest.mark.parametrize(
    ("bucket", "headers"),
    [
        ("datasets", {"X-Job-Id": str(UUID(int=1))}),
        ("other", {"X-Job-Id": str(UUID(int=1))}),
        ("outputs", {}),
        ("outputs", {"X-Job-Id": "seven"}),
        ("outputs", {"X-Job-Id": str(UUID(int=1)), "X-Content-SHA256": "short"}),
    ],
)
async def test_a_malformed_put_is_refused(storage: StorageServer, bucket: str, headers: dict[str, str]) -> None:
    answer = await storage.http.put(f"/{bucket}/k", content=b"x", headers=headers)
    assert answer.status_code == 400
    assert storage.stored_files() == []


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Bearer", "Basic c3RvcmFnZQ==", "Bearer é"])
async def test_without_the_token_nothing_is_read_or_written(storage: StorageServer, authorization: str) -> None:
    headers = [(b"Authorization", authorization.encode()), (b"X-Job-Id", str(uuid4()).encode())]
    for answer in (
        await storage.http.put("/outputs/k", content=b"x", headers=headers),
        await storage.http.get("/outputs/k", headers=headers),
        await storage.http.get("/", headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) in {(401, "missing_token"), (401, "invalid_token")}
    assert storage.stored_files() == []


async def test_what_is_not_there_is_a_problem_document(storage: StorageServer) -> None:
    for path in ("/outputs/nothing", f"/datasets/{'0' * 64}"):
        answer = await storage.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "object_not_found")
    assert (await storage.http.delete("/outputs/k")).json()["code"] == "method_not_allowed"


async def test_a_disk_without_room_answers_507_and_keeps_nothing(start_storage: StartStorage) -> None:
    storage = await start_storage(STORAGE_MIN_FREE_BYTES=10**18)
    answer = await storage.put("k", BODY, uuid4())
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert storage.stored_files() == []


async def test_an_object_over_the_limit_answers_413_and_keeps_nothing(start_storage: StartStorage) -> None:
    async def unannounced() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        yield bytes(MIB)

    storage = await start_storage(STORAGE_MAX_OBJECT_BYTES=MIB)
    announced = await storage.put("k", bytes(MIB + 1), uuid4())
    streamed = await storage.http.put("/outputs/k", content=unannounced(), headers={"X-Job-Id": str(uuid4())})
    assert (announced.status_code, streamed.status_code) == (413, 413)
    assert storage.stored_files() == []


async def test_confirm_names_what_is_not_stored_with_that_digest(storage: StorageServer) -> None:
    job_id = uuid4()
    await storage.put("good", b"good", job_id)
    await storage.put("changed", b"changed", job_id)
    await storage.put("lost", b"lost", job_id)
    (storage.root / "outputs" / "sha256" / sha256_of(b"lost")).unlink()
    expected = {"good": b"good", "changed": b"before", "lost": b"lost", "never": b"never"}
    artifacts = [
        ArtifactRef(name=name, object_key=name, sha256=sha256_of(body), size_bytes=len(body))
        for name, body in expected.items()
    ]
    reply = await storage.send(ConfirmArtifacts(job_id=job_id, artifacts=artifacts))
    assert reply.data == {"missing": ["changed", "lost", "never"]}
    reply = await storage.send(ConfirmArtifacts(job_id=uuid4(), artifacts=artifacts[:1]))
    assert reply.data == {"missing": ["good"]}


async def test_leftovers_of_killed_processes_are_removed_at_the_next_start_and_those_of_living_ones_stay(
    start_storage: StartStorage, tmp_path: Path
) -> None:
    root = tmp_path / "objects"
    living = Slot.claim(root / "writers")
    for number in range(3):
        (root / "incoming" / str(number)).mkdir(parents=True)
        (root / "incoming" / str(number) / "half#1").write_bytes(b"half")
    storage = await start_storage()
    assert storage.stored_files() == ["incoming/0/half#1"]
    living.release()
