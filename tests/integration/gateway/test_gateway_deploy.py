"""Deployments over HTTP, as the training service's documents have them."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from tests.integration.gateway.conftest import OpenSite, Site
from tests.simulators.replicate import DESTINATION, TRAINER, Replicate
from tests.simulators.replicate import KEY as REPLICATE_KEY
from tests.simulators.runpod_pods import KEY, RunPodPods
from tests.support.waiting import eventually

SECTIONS = {
    "model": "Qwen/Qwen2.5-7B",
    "training": {"method": "sft", "num_epochs": 3, "learning_rate": 5e-4, "lora_r": 16, "lora_alpha": 32},
    "predictions": {"enabled": True, "sample_count": 5, "sample_frequency": "epoch"},
}


@pytest.fixture
async def here(open_site: OpenSite, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site with an account at RunPod, whose API is a simulator, and none anywhere else."""
    with RunPodPods() as runpod:
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("TUNEWRIGHT_PROVIDER_RUNPOD_API_URL", runpod.url)
        monkeypatch.setenv("TUNEWRIGHT_PROVIDER_RUNPOD_IMAGE", "example/trainer:1")
        for name in ("API_URL", "CONTROL_URL"):  # the same key is for it too
            monkeypatch.setenv(f"TUNEWRIGHT_PROVIDER_RUNPOD_SERVERLESS_{name}", "http://127.0.0.1:9")
        site = await open_site()

        async def offers_are_known() -> bool:
            shown = (await site.http.get("/api/training/deploy/runpod")).json()
            return bool(shown["hardware"])

        await eventually(offers_are_known)
        yield site


def a_dataset(site: Site) -> list[dict[str, object]]:
    folder = site.folder / "texts"
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text('{"text": "a text to learn"}\n', encoding="utf-8")
    return [{"id": "texts", "type": "local", "dataset_type": "text", "instance_data_dir": str(folder)}]


async def test_a_deployment_answers_as_documented_and_is_a_job_like_any_other(here: Site) -> None:
    body = {**SECTIONS, "dataloader_config": a_dataset(here), "gpu_type": "NVIDIA_RTX_4090"}
    answer = await here.http.post("/api/training/deploy/runpod", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.keys() == {"deployment_id", "pod_id", "status", "gpu_type", "cost"}
    assert told["cost"].keys() == {"estimated_cost", "cost_per_hour"}
    assert (told["gpu_type"], told["pod_id"]) == ("NVIDIA_RTX_4090", None)
    assert told["cost"]["cost_per_hour"] > 0
    job = (await here.http.get(f"/api/cloud/jobs/{told['deployment_id']}")).json()["job"]
    assert job["provider"] == "runpod"
    again = (await here.http.get(f"/api/training/deploy/runpod?deployment_id={told['deployment_id']}")).json()
    assert again["deployment_id"] == told["deployment_id"]
    elsewhere = await here.http.get(f"/api/training/deploy/kaggle?deployment_id={told['deployment_id']}")
    assert elsewhere.status_code == 404

    async def has_a_pod() -> bool:
        shown = await here.http.get(f"/api/training/deploy/runpod?deployment_id={told['deployment_id']}")
        return shown.json()["pod_id"] is not None

    await eventually(has_a_pod)
    refused = await here.http.post("/api/training/deploy/runpod", json={**body, "gpu_type": "RTX 1"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "gpu_type")
    for target in ("kaggle", "hf-spaces", "lambda"):
        unset = await here.http.post(f"/api/training/deploy/{target}", json=body)
        assert (unset.status_code, unset.json()["code"]) == (422, "provider_not_configured"), target


async def test_the_tutorials_submit_to_replicate_becomes_a_training_there(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`POST /api/cloud/jobs/submit?provider=replicate`, as the tutorial and its workflow for CI print it."""
    with Replicate() as replicate:
        monkeypatch.setenv("TUNEWRIGHT_PROVIDER_REPLICATE_API_URL", replicate.api_url)
        site = await open_site(is_public=True)
        settings = {"model": TRAINER, "destination": DESTINATION}
        await site.http.put("/api/cloud/providers/replicate", json=settings)
        await site.http.put("/api/cloud/providers/replicate/token", json={"api_token": REPLICATE_KEY})
        body = site.body(tracker_run_name="gh-run-7", idempotency_key="gh-abc", hardware_profile="h100")
        answer = await site.http.post("/api/cloud/jobs/submit?provider=replicate", json=body)
        assert answer.status_code == 200, answer.text
        job_id = answer.json()["job_id"]

        async def is_there() -> bool:
            attempts = (await site.http.get(f"/api/v1/jobs/{job_id}/attempts")).json()["attempts"]
            return any(replicate.of(UUID(one["attempt_id"]).hex) for one in attempts)

        await eventually(is_there)
        again = await site.http.post("/api/cloud/jobs/submit?provider=replicate", json=body)
        assert (again.json()["job_id"], again.json()["idempotent_hit"]) == (job_id, True)
        job = (await site.http.get(f"/api/cloud/jobs/{job_id}")).json()["job"]
        assert (job["provider"], job["job_type"]) == ("replicate", "cloud")
        kept = await site.http.delete("/api/cloud/providers/replicate/token")
        assert (kept.status_code, kept.json()["code"], kept.json()["job_ids"]) == (409, "credential_in_use", [job_id])
        mine = {"provider": "replicate", "credential_name": "api_token", "value": "r8_mine"}
        assert (await site.http.post("/api/users/ann/credentials", json=mine)).status_code == 200
        nobodys = await site.http.delete("/api/users/ann/credentials/replicate/api_token")
        assert nobodys.status_code == 200, "no run uses it"
        forced = await site.http.delete("/api/cloud/providers/replicate/token?force=true")
        assert forced.json()["success"] is True
        assert not [call for call in replicate.calls if REPLICATE_KEY in f"{call.path}{call.query}{call.body!r}"]
