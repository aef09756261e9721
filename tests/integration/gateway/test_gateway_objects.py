"""Bytes through the gateway: whose token may write where, and that nothing is ever held whole."""

import gc
import hashlib
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import psutil
import pytest

from tests.integration.gateway.conftest import OpenSite, Site

MIB = 1024 * 1024


async def test_object_goes_up_and_comes_back_whole_and_in_ranges(site: Site) -> None:
    trainer = await site.running()
    content = bytes(range(256)) * 400
    sha256 = hashlib.sha256(content).hexdigest()
    stored = await trainer.put("folder/model file.bin", content, X_Content_SHA256=sha256)
    assert stored.status_code == 200, stored.text
    assert stored.json()["Key"] == f"{trainer.job_id}/folder/model file.bin"
    assert stored.headers["etag"] == stored.json()["ETag"]
    url = f"/api/cloud/storage/outputs/{trainer.job_id}/folder/model%20file.bin"
    whole = await site.http.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-length"] == str(len(content))
    assert "sandbox" in whole.headers["content-security-policy"]
    part = await site.http.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    beyond = await site.http.get(url, headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416
    head = await site.http.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")


async def test_lists_name_the_buckets_and_their_objects(site: Site) -> None:
    trainer = await site.running()
    await trainer.put("a.bin", b"abc")

    async def listed() -> list[str]:
        contents = (await site.http.get("/api/cloud/storage/outputs")).json()["Contents"]
        return [item["Key"] for item in contents]

    while f"{trainer.job_id}/a.bin" not in await listed():
        pass
    buckets = (await site.http.get("/api/cloud/storage")).json()["Buckets"]
    assert "outputs" in [bucket["Name"] for bucket in buckets]
    narrowed = (await site.http.get(f"/api/cloud/storage/outputs?job_id={uuid4()}")).json()
    assert narrowed["Contents"] == []


@pytest.mark.parametrize("header", ["X-Upload-Token", "X-SimpleTuner-Secret", "Authorization"])
async def test_every_documented_header_carries_the_upload_token(site: Site, header: str) -> None:
    trainer = await site.running()
    value = f"Bearer {trainer.token}" if header == "Authorization" else trainer.token
    url = f"/api/cloud/storage/outputs/{trainer.job_id}/x.bin"
    assert (await site.http.put(url, content=b"x", headers={header: value})).status_code == 200


async def test_token_of_another_job_may_not_write(site: Site) -> None:
    mine, other = await site.running(), await site.running()
    url = f"/api/cloud/storage/outputs/{mine.job_id}/x.bin"
    stolen = await site.http.put(url, content=b"x", headers={"X-Upload-Token": other.token})
    assert (stolen.status_code, stolen.json()["code"]) == (401, "invalid_token")
    without = await site.http.put(url, content=b"x")
    assert (without.status_code, without.json()["code"]) == (401, "missing_token")
    key = await site.http.put(url, content=b"x", headers={"Authorization": "Bearer stk_abc123"})
    assert key.status_code == 401
    assert (await site.http.get(url)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "datasets/{job}/x",
        "outputs/{job}",
        "outputs/nobody/x",
        "outputs/{job}/%2e%2e/x",
        "outputs/{job}/a//b",
        "o/{job}/x",
    ],
)
async def test_places_outside_the_jobs_own_folder_are_refused(site: Site, path: str) -> None:
    trainer = await site.running()
    url = f"http://127.0.0.1:{site.port}/api/cloud/storage/{path.format(job=trainer.job_id)}"
    answer = await site.http.put(url, content=b"x", headers={"X-Upload-Token": trainer.token})
    assert answer.status_code in {400, 405}, answer.text


async def test_wrong_digest_stores_nothing(site: Site) -> None:
    trainer = await site.running()
    answer = await trainer.put("x.bin", b"x", X_Content_SHA256="0" * 64)
    assert (answer.status_code, answer.json()["code"]) == (400, "digest_mismatch")
    assert (await site.http.get(f"/api/cloud/storage/outputs/{trainer.job_id}/x.bin")).status_code == 404


async def test_ended_attempt_may_not_write_any_more(site: Site) -> None:
    trainer = await site.running()
    await site.http.post(f"/api/cloud/jobs/{trainer.job_id}/cancel")
    await site.until_status(trainer.job_id, "cancelled")
    late = await trainer.put("x.bin", b"x")
    assert (late.status_code, late.json()["code"]) == (409, "attempt_superseded")


async def test_object_over_the_limit_is_refused_announced_or_not(open_site: OpenSite) -> None:
    site = await open_site(gateway_max_object_bytes="1000")
    trainer = await site.running()
    announced = await trainer.put("x.bin", b"x" * 1001)
    assert (announced.status_code, announced.json()["code"]) == (413, "payload_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    assert (await trainer.put("x.bin", chunks())).status_code == 413
    assert (await trainer.put("x.bin", b"x" * 1000)).status_code == 200


async def test_dataset_is_given_to_its_own_jobs_trainer_only(site: Site) -> None:
    trainer = await site.running()
    (dataset,) = (await site.http.get(f"/api/v1/jobs/{trainer.job_id}")).json()["job"]["datasets"]
    url = f"/api/v1/datasets/{dataset['sha256']}"
    fetched = await site.http.get(url, headers={"Authorization": f"Bearer {trainer.token}"})
    assert fetched.status_code == 200
    assert hashlib.sha256(fetched.content).hexdigest() == dataset["sha256"]
    assert len(fetched.content) == dataset["size_bytes"]
    assert (await site.http.get(url)).status_code == 401
    assert (await site.http.get(url, headers={"Authorization": "Bearer wrong"})).status_code == 401
    unknown = await site.http.get(f"/api/v1/datasets/{'0' * 64}", headers={"Authorization": f"Bearer {trainer.token}"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "object_not_found")


async def test_two_hundred_megabytes_pass_in_flat_memory_both_ways(site: Site) -> None:
    """Gateway, storage and client share this process: all of them together may not hold the object."""
    trainer = await site.running()
    process, peak, size = psutil.Process(), 0, 200 * MIB

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal peak
        block = b"\x07" * MIB
        for _ in range(size // MIB):
            peak = max(peak, process.memory_info().rss)
            yield block

    gc.collect()
    before = process.memory_info().rss
    stored = await trainer.put("large.bin", chunks())
    assert stored.status_code == 200, stored.text
    url = f"/api/cloud/storage/outputs/{trainer.job_id}/large.bin"
    received = 0
    async with site.http.stream("GET", url) as answer:
        async for chunk in answer.aiter_raw():
            received += len(chunk)
            peak = max(peak, process.memory_info().rss)
    assert received == size
    assert peak - before < size / 2


async def test_storage_away_is_a_503_and_not_a_500(open_site: OpenSite) -> None:
    site = await open_site("scheduler", "billing", "provider_bridge")
    answer = await site.http.get("/api/cloud/storage/outputs/x/y")
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"]


async def test_broken_off_upload_stores_nothing(site: Site) -> None:
    trainer = await site.running()

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        raise ConnectionResetError

    with pytest.raises((httpx.HTTPError, ConnectionResetError)):
        await trainer.put("x.bin", breaks())
    assert (await site.http.get(f"/api/cloud/storage/outputs/{trainer.job_id}/x.bin")).status_code == 404
