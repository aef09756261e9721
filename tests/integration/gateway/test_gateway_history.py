"""The past, the history, the read models and the health of the whole, over real HTTP."""

import json
import re
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.gateway.domain.views import JobView
from shared.ids import new_id
from tests.integration.gateway.conftest import Site
from tests.support.log import LogDatabase
from tests.support.waiting import eventually

CLOCKED = {"cost_usd", "duration_seconds"}


async def told(site: Site, job_id: UUID, **query: str) -> dict[str, Any]:
    answer = await site.http.get(f"/api/v1/jobs/{job_id}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def completed(site: Site) -> tuple[UUID, dict[int, dict[str, Any]]]:
    """A job that ran to its end, and every state that the API showed on the way, by position."""
    trainer = await site.running()
    seen: dict[int, dict[str, Any]] = {}

    async def look() -> dict[str, Any]:
        job = (await told(site, trainer.job_id))["job"]
        seen[job["position"]] = job
        return job

    await look()
    stored = await trainer.put("pytorch_lora_weights.safetensors", b"weights")
    assert stored.status_code == 200, stored.text
    artifact = (await told_artifacts(site, trainer.job_id))[0]
    await look()
    reference = {name: artifact[name] for name in ("name", "object_key", "sha256", "size_bytes")}
    done = await trainer.report(
        [("done", {"steps": 10, "final_loss": 0.5, "artifacts": [reference], "undelivered": []})]
    )
    assert done.status_code == 200, done.text
    trainer.finish()

    async def ended() -> bool:
        return bool((await look())["is_terminal"]) and (await look())["money"]["captured_micro_usd"] is not None

    await eventually(ended)
    return trainer.job_id, seen


async def told_artifacts(site: Site, job_id: UUID) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []

    async def there() -> bool:
        listed[:] = (await site.http.get(f"/api/v1/jobs/{job_id}/artifacts")).json()["artifacts"]
        return bool(listed)

    await eventually(there)
    return listed


def without_clock(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name not in CLOCKED}


async def test_state_at_a_position_equals_the_state_shown_live_then(site: Site) -> None:
    job_id, seen = await completed(site)
    assert len(seen) >= 3
    for position, live in seen.items():
        then = (await told(site, job_id, at=str(position)))["job"]
        assert without_clock(then) == without_clock(live)


async def test_completed_job_shows_its_cost_model_and_times(site: Site) -> None:
    job_id, _ = await completed(site)
    job = await site.job(job_id)
    assert job["status"] == "completed"
    assert job["output_url"] == f"/api/cloud/storage/outputs/{job_id}/pytorch_lora_weights.safetensors"
    assert (await site.http.get(job["output_url"])).content == b"weights"
    assert job["completed_at"] >= job["started_at"] >= job["created_at"]
    cost = (await site.http.get(f"/api/v1/jobs/{job_id}/cost")).json()
    assert job["cost_usd"] == cost["captured_micro_usd"] / 1e6
    assert sum(entry["amount_micro_usd"] for entry in cost["entries"]) == 0
    # The two answers below come from other owners than the view; they must tell the same story.

    async def is_idle() -> bool:
        return (await site.http.get("/api/v1/queue")).json()["running"] == []

    await eventually(is_idle)


async def test_state_at_a_moment_is_the_fold_up_to_it(site: Site) -> None:
    job_id, _ = await completed(site)
    events = (await site.http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
    started = next(event for event in events if event["type"] == "job.started.v1")
    then = await told(site, job_id, at=started["recorded_at"])
    assert then["job"]["status"] == "running"
    assert then["job"]["position"] == started["global_position"]
    zulu = datetime.fromisoformat(started["recorded_at"]).replace(tzinfo=None).isoformat() + "Z"
    assert (await told(site, job_id, at=zulu))["job"]["position"] == started["global_position"]


async def test_a_moment_before_the_submit_knows_no_such_job(site: Site) -> None:
    job_id = await site.submit()
    answer = await site.http.get(f"/api/v1/jobs/{job_id}", params={"at": "2020-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    nonsense = await site.http.get(f"/api/v1/jobs/{job_id}", params={"at": "yesterday"})
    assert (nonsense.status_code, nonsense.json()["errors"][0]["field"]) == (400, "at")


async def test_history_holds_every_category_in_log_order_with_hashes(site: Site) -> None:
    job_id, _ = await completed(site)
    events = (await site.http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
    assert {event["type"].partition(".")[0] for event in events} == {"job", "dataset", "account", "attempt", "artifact"}
    positions = [event["global_position"] for event in events]
    assert positions == sorted(positions)
    assert all(len(bytes.fromhex(event["hash"])) == 32 for event in events)
    first = events[0]
    assert (first["type"], first["meta"]["actor"], first["meta"]["source_ip"]) == (
        "job.submitted.v1",
        "user:local",
        "127.0.0.1",
    )


async def test_feed_pages_through_the_whole_log_without_a_gap(site: Site) -> None:
    job_id, _ = await completed(site)
    events = (await site.http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
    told_positions = [event["global_position"] for event in events]  # told first: the log may grow meanwhile
    after, positions = 0, list[int]()
    while page := (await site.http.get(f"/api/v1/events?after={after}&limit=5")).json()["events"]:
        positions += [event["global_position"] for event in page]
        after = positions[-1]
    assert positions == sorted(set(positions))
    assert set(told_positions) <= set(positions)


async def test_metrics_count_and_charge_what_was_done_and_a_submit_is_counted_at_once(site: Site) -> None:
    done, _ = await completed(site)
    charged = (await site.http.get(f"/api/v1/jobs/{done}/cost")).json()["captured_micro_usd"] / 1_000_000

    async def settled() -> bool:
        return (await site.http.get("/api/cloud/metrics")).json()["total_cost"] == charged

    await eventually(settled)
    await site.submit()
    said = (await site.http.get("/api/metrics?days=1")).json()
    assert (said["job_count"], said["jobs_by_status"]["completed"], said["success_rate"]) == (2, 1, 1.0)
    assert said["by_provider"]["local"]["total_cost"] == charged > 0
    text = await site.http.get("/api/cloud/metrics/prometheus")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "simpletuner_jobs_total 2\n" in text.text
    refused = await site.http.get("/api/cloud/metrics?days=0")
    assert (refused.status_code, refused.json()["code"]) == (400, "validation_error")


async def test_rebuild_gives_byte_equal_rows_in_every_service(site: Site) -> None:
    await completed(site)
    report = (await site.http.post("/api/v1/admin/rebuild", timeout=60)).json()
    assert report["equal"] is True
    assert set(report["services"]) == {"storage", "billing", "provider_bridge", "scheduler", "gateway"}
    (view,) = report["services"]["gateway"]["projections"]
    assert (view["name"], view["rows"], view["equal"]) == (
        "jobs_view",
        4,
        True,
    )  # the job, its attempt, a sum, its model
    alone = (await site.http.post("/api/v1/admin/rebuild?service=gateway")).json()
    assert list(alone["services"]) == ["gateway"]


async def test_rebuild_says_so_when_the_view_held_a_row_that_the_log_does_not(
    site: Site, log_database: LogDatabase
) -> None:
    job_id = await site.submit()
    await site.until_status(job_id, "queued", "running")
    invented = new_id()  # no event will come that puts it right before the rebuild looks, as could happen to a real row
    connection = await asyncpg.connect(log_database.superuser_dsn)
    await connection.execute(
        "INSERT INTO gateway.jobs_view SELECT (jsonb_populate_record(row, jsonb_build_object('job_id', $2::uuid))).* "
        "FROM gateway.jobs_view AS row WHERE job_id = $1",
        job_id,
        invented,
    )
    report = (await site.http.post("/api/v1/admin/rebuild?service=gateway")).json()
    assert report["equal"] is False
    kept = await connection.fetch("SELECT job_id, view FROM gateway.jobs_view")
    await connection.close()
    assert [row["job_id"] for row in kept] == [job_id]
    assert msgspec.json.decode(kept[0]["view"], type=JobView).job_id == job_id
    assert (await site.http.post("/api/v1/admin/rebuild?service=gateway")).json()["equal"] is True


async def test_parked_messages_are_listed_by_service_and_replayed_by_name(site: Site) -> None:
    parked = (await site.http.get("/api/v1/admin/parked")).json()
    assert {name: answer["parked"] for name, answer in parked["services"].items()} == {
        name: [] for name in ("storage", "billing", "provider_bridge", "scheduler", "gateway")
    }
    body = {"service": "gateway", "durable": "gateway__jobs_view", "position": 1}
    answer = await site.http.post("/api/v1/admin/parked/replay", json=body)
    assert answer.status_code in {200, 404}, answer.text
    unknown = await site.http.post("/api/v1/admin/parked/replay", json={**body, "service": "moon"})
    assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (400, "service")


async def test_whole_site_is_healthy_and_ready(site: Site) -> None:
    health: dict[str, Any] = {}

    async def is_healthy() -> bool:
        """A part that was too busy to answer in time is unhealthy for that one look."""
        health.update((await site.http.get("/api/cloud/health")).json())
        return health["status"] == "healthy"

    await eventually(is_healthy)
    assert [part["name"] for part in health["components"]] == [
        "postgres",
        "nats",
        "storage",
        "billing",
        "provider_bridge",
        "scheduler",
        "gateway",
    ]

    async def is_ready() -> bool:
        return (await site.http.get("/api/cloud/health/ready")).json() == {"status": "ready"}

    await eventually(is_ready)
    assert (await site.http.get("/health")).json() == {"status": "healthy", "mode": "unified"}


async def test_api_documents_describe_every_route_without_outside_scripts(site: Site) -> None:
    document = (await site.http.get("/openapi.json")).json()
    assert "/api/cloud/jobs/submit" in document["paths"]
    body = document["paths"]["/api/cloud/jobs/submit"]["post"]["requestBody"]
    assert "SubmitJobRequest" in json.dumps(body)
    page = await site.http.get("/docs")
    assert page.status_code == 200
    assert "/api/cloud/jobs/submit" in page.text
    assert "<script" not in page.text
    assert "style-src 'sha256-" in page.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=['\"](?!/openapi.json)", page.text)
