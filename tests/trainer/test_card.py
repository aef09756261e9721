"""The model card: what it says of licence, base and use, for every kind of training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from trainer.publish.card import CardFacts, base_card_of, model_card, newest_samples
from trainer.publish.upload import OutgoingFile

CONFIG = {"model_family": "flux", "model_type": "lora", "push_to_hub": True, "hub_model_id": "ann/digits"}


def spec_of(**changes: Any) -> DiffusionSpec:
    return check_diffusion({**CONFIG, **changes})


def card(folder: Path, **changes: Any) -> str:
    (folder / "lora.safetensors").write_bytes(b"weights")
    spec = changes.pop("spec", spec_of())
    facts: dict[str, Any] = {
        "title": "FLUX.1 LoRA of job 1", "kind": "diffusion", "base": "black-forest-labs/FLUX.1-dev", "base_card": None,
        "spec": spec, "delivery": spec.delivery, "steps": 12, "final_loss": 0.25, "job_id": "1",
        "config_hash": "c" * 64,
        "files": [OutgoingFile(folder / "lora.safetensors", "lora.safetensors")], "datasets": ["mine"],
    }  # fmt: skip
    return model_card(CardFacts(**{**facts, **changes}))


def matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---", 2)[1])


def test_the_licence_is_the_base_models_own(tmp_path: Path) -> None:
    base = tmp_path / "base.md"
    base.write_text("---\nlicense: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md\n---\n", encoding="utf-8")
    text = card(tmp_path, base_card=base)
    assert [matter(text)[name] for name in ("license", "license_name", "license_link")] == [
        "other", "flux-1-dev", "LICENSE.md",
    ]  # fmt: skip
    assert "The base model's licence (`flux-1-dev`) applies" in text


@pytest.mark.parametrize(
    "content", [None, "", "no front matter", "---\n- a list\n---\n", "---\n{bad yaml\n---\n", "---"]
)
def test_a_licence_that_is_not_known_is_not_invented(tmp_path: Path, content: str | None) -> None:
    base = tmp_path / "base.md"
    if content is not None:
        base.write_text(content, encoding="utf-8")
    text = card(tmp_path, base_card=base)
    assert "license" not in matter(text)
    assert "did not say which one it is" in text


def test_the_base_of_the_hub_is_linked_and_how_it_was_made_is_told(tmp_path: Path) -> None:
    made = matter(card(tmp_path))
    assert (made["base_model"], made["base_model_relation"]) == ("black-forest-labs/FLUX.1-dev", "adapter")


def test_a_card_may_be_called_safe_for_work(tmp_path: Path) -> None:
    assert "not-for-all-audiences" in matter(card(tmp_path))["tags"]
    safe = spec_of(model_card_safe_for_work=True)
    assert "not-for-all-audiences" not in matter(card(tmp_path, spec=safe))["tags"]


def test_a_language_model_is_used_with_peft(tmp_path: Path) -> None:
    text = card(tmp_path, kind="llm", base="Qwen/Qwen2.5-7B")
    made = matter(text)
    assert (made["library_name"], made["pipeline_tag"]) == ("peft", "text-generation")
    assert "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('Qwen/Qwen2.5-7B'), 'ann/digits')" in text
    assert "diffusers" not in text


def test_the_base_card_is_looked_for_in_a_folder_and_never_downloaded(tmp_path: Path) -> None:
    assert base_card_of(str(tmp_path), None) == tmp_path / "README.md"
    assert base_card_of("nobody/nothing-here", None) is None
    assert base_card_of("../up", None) is None


def test_the_newest_pictures_are_shown_with_their_prompts(tmp_path: Path) -> None:
    for name in ("step-000002-a-cat-32x32-0.png", "step-000010-a-cat-32x32-0.png", "step-000010-a-cat-32x32-1-ema.png",
                 "step-000010-unknown-32x32-0.png"):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    shown = newest_samples(tmp_path, {"a cat": "a photo of a cat"})
    assert [(each.file.name, each.prompt) for each in shown] == [
        ("samples/step-000010-a-cat-32x32-0.png", "a photo of a cat"),
        ("samples/step-000010-a-cat-32x32-1-ema.png", "a photo of a cat"),
    ]
    assert newest_samples(tmp_path / "none", {}) == []
