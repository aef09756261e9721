"""Workers over HTTP: a real gateway and a real bridge, the documented shapes and refusals."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.inbound import worker_stream
from shared.ids import new_id
from tests.integration.gateway.conftest import OpenSite, Site
from tests.support.waiting import eventually

GPU = {"name": "NVIDIA A100", "count": 2, "vram_gb": 80}


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site("provider_bridge")


async def made(site: Site, **body: Any) -> tuple[str, dict[str, str]]:
    """A worker's id, and the headers that it sends."""
    answer = await site.http.post("/api/admin/workers", json={"name": "one", **body})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"worker_id", "token", "connection_command"}
    return answer.json()["worker_id"], {"X-Worker-Token": answer.json()["token"]}


async def register(site: Site, token: dict[str, str], **body: Any) -> httpx.Response:
    return await site.http.post("/api/workers/register", json={"name": "one", "gpu_info": GPU, **body}, headers=token)


async def listed(site: Site, worker_id: str) -> dict[str, Any] | None:
    answer = await site.http.get("/api/admin/workers")
    assert answer.json()["total"] == len(answer.json()["workers"])
    return next((one for one in answer.json()["workers"] if one["worker_id"] == worker_id), None)


class Stream:
    """An open stream: what came so far."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.over = False

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    async def until(self, name: str) -> dict[str, Any]:
        async def came() -> bool:
            return name in self.names()

        await eventually(came)
        return next(data for known, data in self.seen if known == name)

    async def read(self, answer: httpx.Response) -> None:
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self.seen.append((name, msgspec.json.decode(line.removeprefix("data: "))))
        self.over = True


@asynccontextmanager
async def stream(site: Site, worker_id: str, token: dict[str, str]) -> AsyncGenerator[Stream]:
    async with site.http.stream("GET", f"/api/workers/stream?worker_id={worker_id}", headers=token) as answer:
        assert answer.status_code == 200
        opened = Stream()
        reading = asyncio.create_task(opened.read(answer))
        try:
            yield opened
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_worker_that_was_made_registers_and_is_listed_as_documented(site: Site) -> None:
    worker_id, token = await made(site, labels={"site": "lab"}, price_usd_per_hour=1.5)
    before = await listed(site, worker_id)
    assert before is not None
    assert before["status"] == "connecting"
    answer = await register(site, token, labels={"site": "home", "team": "art"}, persistent=True, provider="my desk")
    assert answer.json() == {
        "worker_id": worker_id,
        "sse_url": f"/api/workers/stream?worker_id={worker_id}",
        "resume_job": None,
        "abandon_job": None,
    }
    item = await listed(site, worker_id)
    assert item is not None
    assert item.pop("last_heartbeat")
    assert item.pop("connected_at")
    assert item.pop("created_at")
    assert item.pop("uptime_seconds") >= 0
    assert item == {
        "worker_id": worker_id,
        "name": "one",
        "worker_type": "persistent",
        "status": "idle",
        "gpu_info": GPU,
        "provider": "my desk",
        "labels": {"site": "lab", "team": "art"},
        "current_job_id": None,
        "connected": False,
        "price_usd_per_hour": 1.5,
        "last_report": None,
    }
    idle = await site.http.get("/api/admin/workers?status_filter=idle")
    busy = await site.http.get("/api/admin/workers?status_filter=busy")
    assert (idle.json()["total"], busy.json()["total"]) == (1, 0)


async def test_what_is_no_workers_token_is_refused_wherever_it_is_sent(site: Site) -> None:
    worker_id, token = await made(site)
    other, _ = await made(site)
    wrong = {"X-Worker-Token": token["X-Worker-Token"][:-1] + ("a" if token["X-Worker-Token"][-1] != "a" else "b")}
    beat = {"worker_id": worker_id, "status": "idle"}
    for headers, code in (({}, "missing_token"), (wrong, "invalid_token"), ({"X-Worker-Token": "x"}, "invalid_token")):
        answers = [
            await register(site, headers),
            await site.http.get(f"/api/workers/stream?worker_id={worker_id}", headers=headers),
            await site.http.post("/api/workers/heartbeat", json=beat, headers=headers),
            await site.http.post(f"/api/workers/job/{new_id()}/status", json={"status": "running"}, headers=headers),
        ]
        assert [(one.status_code, one.json()["code"]) for one in answers] == [(401, code)] * 4
    answer = await site.http.get(f"/api/workers/stream?worker_id={other}", headers=token)
    assert answer.status_code == 400
    answer = await site.http.post("/api/workers/heartbeat", json={**beat, "worker_id": other}, headers=token)
    assert answer.status_code == 400


async def test_a_stream_greets_and_makes_its_worker_connected(site: Site) -> None:
    worker_id, token = await made(site)
    await register(site, token)
    async with stream(site, worker_id, token) as opened:
        assert "timestamp" in await opened.until("ping")
        item = await listed(site, worker_id)
        assert item is not None
        assert item["connected"] is True
    beat = {"worker_id": worker_id, "status": "idle", "gpu_utilization": 3, "vram_used_gb": 0.5, "new_member": 1}
    answer = await site.http.post("/api/workers/heartbeat", json=beat, headers=token)
    assert answer.json() == {"success": True, "abandon_job": None}
    item = await listed(site, worker_id)
    assert item is not None
    assert item["last_report"] == {"status": "idle", "job_progress": None, "gpu_utilization": 3.0, "vram_used_gb": 0.5}


async def test_a_rotated_token_ends_the_open_stream_at_once(site: Site) -> None:
    worker_id, token = await made(site)
    await register(site, token)
    async with stream(site, worker_id, token) as opened:
        await opened.until("ping")
        answer = await site.http.post(f"/api/admin/workers/{worker_id}/token")
        assert set(answer.json()) == {"worker_id", "token", "connection_command"}
        assert answer.json()["token"] != token["X-Worker-Token"]
        assert (await opened.until("error"))["error"] == "invalid_token"
    assert (await register(site, token)).status_code == 401
    assert (await register(site, {"X-Worker-Token": answer.json()["token"]})).status_code == 200


async def test_a_drained_worker_is_told_so_and_a_removed_one_to_end(site: Site) -> None:
    worker_id, token = await made(site)
    await register(site, token)
    async with stream(site, worker_id, token) as opened:
        await opened.until("ping")
        answer = await site.http.post(f"/api/admin/workers/{worker_id}/drain")
        assert answer.json() == {"success": True, "worker_id": worker_id, "status": "draining"}
        await opened.until("shutdown")
        assert opened.names()[-2:] == ["drain", "shutdown"]
    await site.http.post(f"/api/admin/workers/{worker_id}/resume")
    async with stream(site, worker_id, token) as opened:
        await opened.until("ping")
        answer = await site.http.delete(f"/api/admin/workers/{worker_id}")
        assert answer.json()["success"] is True
        await opened.until("shutdown")
        assert "drain" not in opened.names()
    assert await listed(site, worker_id) is None
    answer = await site.http.post(f"/api/admin/workers/{worker_id}/drain")
    assert (answer.status_code, answer.json()["code"]) == (404, "worker_not_found")


def nothing_comes(*_: object) -> None:
    """Every hint is lost on its way."""


async def test_a_wake_up_that_is_lost_costs_a_moment_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stream, "LOOK_AGAIN_S", 0.2)
    worker_id, token = await made(site)
    await register(site, token)
    monkeypatch.setattr("services.gateway.inbound.wakeups.Wakeups._wake", nothing_comes)
    async with stream(site, worker_id, token) as opened:
        await opened.until("ping")
        await site.http.post(f"/api/admin/workers/{worker_id}/drain")
        await opened.until("shutdown")


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "x", "labels": {"": "a"}},
        {"name": "x", "labels": {str(number): "a" for number in range(33)}},
        {"name": "x", "worker_type": "eternal"},
        {"name": "x", "price_usd_per_hour": -1},
        {"name": "x", "unknown": 1},
    ],
)
async def test_a_worker_that_cannot_be_is_refused_with_the_reason(site: Site, body: dict[str, Any]) -> None:
    answer = await site.http.post("/api/admin/workers", json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"]


async def test_a_job_that_is_not_the_workers_is_refused(site: Site) -> None:
    _, token = await made(site)
    await register(site, token)
    for job_id, body, status in (
        (new_id(), {"status": "completed"}, 404),
        (new_id(), {"status": "bored"}, 400),
        ("no-id", {"status": "completed"}, 404),
    ):
        answer = await site.http.post(f"/api/workers/job/{job_id}/status", json=body, headers=token)
        assert answer.status_code == status


async def test_no_token_of_a_worker_stands_in_the_log(site: Site) -> None:
    worker_id, token = await made(site)
    await register(site, token)
    await site.http.post(f"/api/admin/workers/{worker_id}/token")
    store = site.runtimes["gateway"].store
    text = b"".join(bytes(event.data) for event in await store.read(categories=["worker"]))
    assert b"token_sha256" in text
    assert b"tww_" not in text
