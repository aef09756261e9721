"""The documented job endpoints over real HTTP, with real services behind them."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from nats.aio.msg import Msg

from shared.contracts.subjects import FRONT_BUSY
from tests.integration.gateway.conftest import OpenSite, Site, a_config

JOB_MEMBERS = {
    "job_id",
    "job_type",
    "provider",
    "status",
    "config_name",
    "created_at",
    "started_at",
    "completed_at",
    "cost_usd",
    "hardware_type",
    "error_message",
    "output_url",
    "user_id",
    "metadata",
    "is_terminal",
    "is_active",
    "duration_seconds",
}


async def submit(site: Site, body: dict[str, Any], provider: str = "local", **headers: str) -> Any:
    return await site.http.post(f"/api/cloud/jobs/submit?provider={provider}", json=body, headers=headers)


async def test_submit_with_inline_config_answers_in_the_documented_shape(site: Site) -> None:
    answer = await submit(site, site.body(tracker_run_name="api-test-run"))
    assert answer.status_code == 200
    said = answer.json()
    assert said["success"] is True
    assert said["error"] is None
    assert said["idempotent_hit"] is False
    assert said["quota_warnings"] == []
    job = await site.job(UUID(said["job_id"]))
    assert set(job) >= JOB_MEMBERS
    assert "upload_token" not in job
    assert job["metadata"]["tracker_run_name"] == "api-test-run"
    assert (job["user_id"], job["job_type"], job["provider"]) == ("local", "local", "local")


async def test_submit_with_saved_config_loads_it_and_its_dataloader(site: Site) -> None:
    body = site.body()
    folder = site.folder / "configs" / "my-training-config"
    folder.mkdir()
    config = {**body["config"], "--data_backend_config": "config/my-training-config/loader.json"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "loader.json").write_text(json.dumps(body["dataloader_config"]), encoding="utf-8")
    answer = await submit(site, {"config_name_to_load": "my-training-config", "tracker_run_name": "run"})
    assert answer.status_code == 200, answer.text
    assert (await site.job(UUID(answer.json()["job_id"])))["config_name"] == "my-training-config"


@pytest.mark.parametrize("name", ["../secret", "a/b", "/etc/passwd", "..", ".hidden", "a b", ""])
async def test_saved_config_name_that_is_a_path_is_refused(site: Site, name: str) -> None:
    answer = await submit(site, {"config_name_to_load": name})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "config_name_to_load"


async def test_saved_config_that_is_not_there_is_config_not_found(site: Site) -> None:
    answer = await submit(site, {"config_name_to_load": "nowhere"})
    assert (answer.status_code, answer.json()["code"]) == (404, "config_not_found")


async def test_unknown_key_of_the_body_is_named(site: Site) -> None:
    answer = await submit(site, site.body(colour="red"))
    assert answer.status_code == 400
    said = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in said["errors"]] == ["colour"]
    assert said["success"] is False
    assert said["error"] == said["detail"]


async def test_wrong_type_in_the_body_names_the_field(site: Site) -> None:
    answer = await submit(site, site.body(tracker_run_name=7))
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_error")
    assert answer.json()["errors"][0]["field"] == "tracker_run_name"


async def test_every_problem_of_a_config_is_listed_at_once(site: Site) -> None:
    body = site.body()
    body["config"] = a_config(**{"--lora_rnak": 4, "--learning_rate": "fast"})
    body["dataloader_config"][0]["colour"] = "red"
    answer = await submit(site, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_config")
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields >= {"--lora_rnak", "learning_rate", "dataloader[0].colour"}
    assert all(error["advice"] for error in answer.json()["errors"])


async def test_unknown_provider_is_refused_naming_the_known_ones(site: Site) -> None:
    answer = await submit(site, site.body(), provider="PROVIDER")
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_provider")
    assert {"local", "replicate", "auto"} <= set(answer.json()["known_providers"])


@pytest.mark.parametrize(("given", "stored"), [("high", 20), (30, 30), ("40", 40), (None, 10)])
async def test_priority_is_a_word_or_a_number(site: Site, given: object, stored: int) -> None:
    job_id = await site.submit(priority=given)
    assert (await site.job(job_id))["priority"] == stored


async def test_priority_that_does_not_exist_names_the_field(site: Site) -> None:
    answer = await submit(site, site.body(priority="soon"))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "priority")


async def test_list_pages_and_counts_every_job(site: Site) -> None:
    ids = [str(await site.submit()) for _ in range(3)]
    page = (await site.http.get("/api/cloud/jobs?limit=2&sync_active=true")).json()
    assert [job["job_id"] for job in page["jobs"]] == [ids[2], ids[1]]
    assert page["total"] == 3
    rest = (await site.http.get("/api/cloud/jobs?limit=2&offset=2")).json()
    assert [job["job_id"] for job in rest["jobs"]] == [ids[0]]
    assert (await site.http.get("/api/cloud/jobs?provider=replicate")).json() == {"jobs": [], "total": 0}
    assert (await site.http.get("/api/cloud/jobs?job_type=cloud")).json()["total"] == 0


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "offset=-1", "job_type=moon", "status=done", "limit=x"])
async def test_list_refuses_a_query_that_means_nothing(site: Site, query: str) -> None:
    answer = await site.http.get(f"/api/cloud/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_cancel_then_delete_hides_the_job_and_keeps_its_history(site: Site) -> None:
    job_id = await site.submit()
    early = await site.http.delete(f"/api/cloud/jobs/{job_id}")
    assert (early.status_code, early.json()["code"]) == (400, "invalid_job_state")
    answer = await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "job_id": str(job_id), "status": "cancelled"}
    await site.until_status(job_id, "cancelled")
    again = await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")
    assert again.status_code in {200, 409}
    deleted = await site.http.delete(f"/api/cloud/jobs/{job_id}")
    assert (deleted.status_code, deleted.json()) == (200, {"success": True, "job_id": str(job_id)})
    assert (await site.http.get(f"/api/cloud/jobs/{job_id}")).status_code == 404
    assert (await site.http.get("/api/cloud/jobs")).json()["total"] == 0
    history = (await site.http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
    assert history[-1]["type"] == "job.deleted.v1"


@pytest.mark.parametrize("job_id", ["01a20122-d4af-7096-9b6d-931ed74b28d9", "nonsense"])
async def test_a_job_nobody_submitted_is_job_not_found(site: Site, job_id: str) -> None:
    for path in ("", "/logs", "/logs/stream", "/inline-progress"):
        answer = await site.http.get(f"/api/cloud/jobs/{job_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert (await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")).status_code == 404


async def test_sync_counts_the_active_jobs(site: Site) -> None:
    await site.submit()
    answer = (await site.http.post("/api/cloud/jobs/sync")).json()
    assert answer["synced"] == 1
    assert answer["message"]


async def test_fifty_parallel_submits_under_one_key_are_one_job(site: Site) -> None:
    body = site.body(idempotency_key="ci-build-12345")
    answers = await asyncio.gather(*(submit(site, body) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert sum(not answer.json()["idempotent_hit"] for answer in answers) == 1
    assert (await site.http.get("/api/cloud/jobs?sync_active=true")).json()["total"] == 1


async def test_key_of_another_body_is_refused(site: Site) -> None:
    assert (await submit(site, site.body(), **{"Idempotency-Key": "k"})).status_code == 200
    other = await submit(site, site.body(tracker_run_name="other"), **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_key_in_header_and_body_is_one_key(site: Site) -> None:
    first = await submit(site, site.body(), **{"Idempotency-Key": "same"})
    second = await submit(site, site.body(idempotency_key="same"))
    assert first.json()["job_id"] == second.json()["job_id"]
    assert second.json()["idempotent_hit"] is True


async def test_refused_config_does_not_burn_the_key(site: Site) -> None:
    bad = site.body(idempotency_key="k", config=a_config(**{"--lora_rank": "many"}))
    assert (await submit(site, bad)).status_code == 400
    assert (await submit(site, site.body(idempotency_key="k"))).status_code == 200


async def test_key_answers_with_its_job_after_the_saved_config_is_gone(site: Site) -> None:
    path = site.folder / "configs" / "gone.json"
    body = site.body()
    path.write_text(json.dumps({"config": body["config"], "dataloader_config": body["dataloader_config"]}))
    first = await submit(site, {"config_name_to_load": "gone", "idempotency_key": "k"})
    path.unlink()
    second = await submit(site, {"config_name_to_load": "gone", "idempotency_key": "k"})
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["job_id"] == second.json()["job_id"]


async def test_claim_whose_submit_was_never_sent_is_healed_by_the_repeat(open_site: OpenSite) -> None:
    site = await open_site(only_gateway=True)
    body = site.body(idempotency_key="k")
    lost = await submit(site, body)
    assert lost.status_code == 503
    await site.start("scheduler", "storage", "billing", "provider_bridge")
    healed = await submit(site, body)
    assert (healed.status_code, healed.json()["idempotent_hit"]) == (200, True)
    assert (await site.http.get("/api/cloud/jobs?sync_active=true")).json()["total"] == 1


async def test_no_owner_alive_is_a_503_that_says_when_to_come_back(open_site: OpenSite) -> None:
    site = await open_site(only_gateway=True)
    answer = await submit(site, site.body())
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    ready = await site.http.get("/api/cloud/health/ready")
    assert ready.status_code == 503
    assert "scheduler" in ready.json()["detail"]
    health = (await site.http.get("/api/cloud/health")).json()
    by_name = {part["name"]: part["status"] for part in health["components"]}
    assert (by_name["postgres"], by_name["gateway"], by_name["scheduler"]) == ("healthy", "healthy", "unhealthy")
    assert (await site.http.get("/api/cloud/health/live")).json() == {"status": "ok"}


async def test_submits_at_once_claim_the_right_of_way_over_their_own_consequences(site: Site) -> None:
    heard = asyncio.Event()

    async def hear(_message: Msg) -> None:
        heard.set()

    others = site.runtimes["scheduler"].bus.client
    await others.subscribe(FRONT_BUSY, cb=hear)  # pyright: ignore[reportUnknownMemberType] - nats-py leaves a future untyped
    await others.flush()
    await asyncio.gather(*(site.submit() for _ in range(30)))
    async with asyncio.timeout(60):
        await heard.wait()
