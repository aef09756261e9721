"""Deliveries and the model registry over the real services."""

from tests.integration.gateway.conftest import Site
from tests.support.waiting import eventually

HUB = {"target": "hub:ann/digits", "what": "results", "status": "delivered", "url": "https://hub/ann/digits"}
BUCKET = {"target": "s3:backup", "what": "results", "status": "failed", "message": "the bucket is not there"}


async def test_a_failed_delivery_leaves_the_job_completed_and_stands_in_the_registry(site: Site) -> None:
    trainer = await site.running(tracker_run_name="my digits")
    assert (await trainer.put("lora.safetensors", b"weights")).status_code == 200
    stored = await site.http.get(f"/api/v1/jobs/{trainer.job_id}/artifacts")
    kept = ("name", "object_key", "sha256", "size_bytes")
    reference = {name: stored.json()["artifacts"][0][name] for name in kept}
    told = await trainer.report(
        [
            ("delivery", {**HUB, "files": ["lora.safetensors"]}),
            ("delivery", {**BUCKET, "files": ["lora.safetensors"]}),
            ("done", {"steps": 10, "final_loss": 0.5, "artifacts": [reference], "undelivered": []}),
        ]
    )
    assert told.status_code == 200, told.text
    trainer.finish()
    job = await site.until_status(trainer.job_id, "completed", "failed")
    assert job["status"] == "completed"
    assert job["metadata"]["delivery_problems"] == ["results did not reach s3:backup: the bucket is not there"]
    assert [each["target"] for each in job["metadata"]["deliveries"]] == ["hub:ann/digits", "s3:backup"]

    by_name = await site.http.get("/api/v1/models/my%20digits")
    assert by_name.status_code == 200, by_name.text
    model = by_name.json()
    assert model == (await site.http.get(f"/api/v1/models/{trainer.job_id}")).json()
    assert [(file["name"], file["sha256"]) for file in model["files"]] == [("lora.safetensors", reference["sha256"])]
    assert (await site.http.get(model["files"][0]["url"])).content == b"weights"
    assert (model["family"], model["kind"], [each["status"] for each in model["deliveries"]]) == (
        "flux", "lora", ["delivered", "failed"],
    )  # fmt: skip
    listed = (await site.http.get("/api/v1/models")).json()
    assert (listed["total"], [each["job_id"] for each in listed["models"]]) == (1, [str(trainer.job_id)])
    unknown = await site.http.get("/api/v1/models/no-such")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
    await _rebuilds_and_forgets(site, str(trainer.job_id))


async def _rebuilds_and_forgets(site: Site, job_id: str) -> None:
    async def settled() -> bool:
        return (await site.http.get(f"/api/v1/jobs/{job_id}")).json()["job"]["money"]["released_micro_usd"] is not None

    await eventually(settled)
    report = (await site.http.post("/api/v1/admin/rebuild?service=gateway", timeout=60)).json()
    assert report["equal"] is True, report
    assert (await site.http.delete(f"/api/cloud/jobs/{job_id}")).status_code == 200

    async def gone() -> bool:
        return (await site.http.get("/api/v1/models")).json()["total"] == 0

    await eventually(gone)
