"""The registry: what a completed job leaves behind, from its view alone."""

import hashlib
from typing import Any

import pytest

from services.gateway.domain.job_body import job_body
from services.gateway.domain.model_body import ModelBody, model_of
from services.gateway.domain.views import fold_job
from shared.contracts.attempt import AttemptDelivered, AttemptDeliveryFailed
from shared.contracts.job import JobDeleted
from tests.unit.gateway.builders import StoryTeller, at

FLUX = {"--model_family": "flux", "--model-type": "lora", "pretrained_model_name_or_path": "some/base"}


def model(story: StoryTeller) -> ModelBody | None:
    return model_of(fold_job(story.job_id, story.events))


def trained(**changes: Any) -> StoryTeller:
    return StoryTeller().submitted(**{"config": FLUX, **changes}).queued().running()


def made(story: StoryTeller) -> ModelBody:
    found = model(story)
    assert found is not None
    return found


def test_a_completed_job_is_a_model_and_no_other_is() -> None:
    story = trained()
    assert model(story) is None
    body = made(story.completed())
    assert (body.model_id, body.name, body.steps, body.final_loss) == (str(story.job_id), "run", 10, 0.5)
    assert (body.family, body.kind, body.base_model) == ("flux", "lora", "some/base")
    assert body.created_at == at(31)
    assert model(story.job(JobDeleted(deleted_at=at(60)))) is None


def test_the_models_files_are_those_that_are_not_beside_it() -> None:
    story = trained().stored("lora.safetensors").stored("ema/lora.safetensors")
    body = made(story.stored("checkpoint-5/state").stored("samples/one.png").completed())
    assert [file.name for file in body.files] == ["ema/lora.safetensors", "lora.safetensors"]
    assert body.files[1].url == f"/api/cloud/storage/outputs/{story.job_id}/lora.safetensors"
    assert body.samples == [f"{story.job_id}/samples/one.png"]


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"model_family": "sdxl", "model_type": "full"}, ("sdxl", "full", None)),
        ({"model": "Qwen/Qwen2.5-7B", "training": {"lora_r": 16}}, ("llm", "lora", "Qwen/Qwen2.5-7B")),
        ({"model": "Qwen/Qwen2.5-7B", "training": {"lora_r": 0}}, ("llm", "full", "Qwen/Qwen2.5-7B")),
        ({"--model_family": ["odd"], "training": 3}, (None, "lora", None)),
    ],
)
def test_the_config_says_what_kind_of_model_it_is(config: dict[str, Any], facts: tuple[Any, ...]) -> None:
    body = made(trained(config=config).completed())
    assert (body.family, body.kind, body.base_model) == facts


def test_the_config_hash_is_the_one_in_the_files_whatever_the_order_of_keys() -> None:
    body = made(trained(config={"b": 1, "a": [2]}).completed())
    assert body.config_hash == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert body.config_hash == made(trained(config={"a": [2], "b": 1}).completed()).config_hash


def test_a_model_without_a_given_name_is_named_by_what_it_is() -> None:
    story = trained(tracker_run_name=None)
    assert made(story.completed()).name == f"flux-lora-{str(story.job_id)[-8:]}"
    assert made(trained(tracker_run_name=None, config_name="saved").completed()).name == "saved"


def test_deliveries_are_told_with_the_model_and_a_failed_one_is_a_problem_of_a_completed_job() -> None:
    hub = AttemptDelivered(target="hub:a/b", what="results", url="https://h/a/b", files=["x"], delivered_at=at(28))
    s3 = AttemptDeliveryFailed(target="s3:c", what="results", message="no such bucket", files=["x"], failed_at=at(29))
    story = trained().attempt(hub, s3).completed()
    assert [(each["target"], each["status"]) for each in made(story).deliveries] == [
        ("hub:a/b", "delivered"),
        ("s3:c", "failed"),
    ]
    body = job_body(fold_job(story.job_id, story.events), now=at(100), queue_position=None)
    assert (body.status, body.error_message) == ("completed", None)
    assert body.metadata["delivery_problems"] == ["results did not reach s3:c: no such bucket"]


def test_what_a_target_said_last_is_what_counts() -> None:
    away = AttemptDeliveryFailed(target="s3:c", what="results", message="away", files=["x"], failed_at=at(28))
    there = AttemptDelivered(target="s3:c", what="results", url=None, files=["x"], delivered_at=at(29))
    assert [each["status"] for each in made(trained().attempt(away, there).completed()).deliveries] == ["delivered"]
