# pyright: basic
import json
from pathlib import Path
from typing import Any

import pytest
from attempts import CONFIG

from shared.contracts.training.datasets import check_dataloader
from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from shared.contracts.training.diffusion_keys import IGNORED, REFUSED
from shared.contracts.training.problems import ConfigRejected

MINIMAL = {"--model_family": "flux", "--model_type": "lora", "--max_train_steps": 10}
TRAINER = Path(__file__).parents[2] / "trainer"


def problems_of(config: dict) -> dict[str, tuple[str, str]]:
    with pytest.raises(ConfigRejected) as rejected:
        check_diffusion(config)
    return {problem.field: (problem.code, problem.advice) for problem in rejected.value.problems}


def test_the_printed_submission_is_accepted() -> None:
    spec = check_diffusion(
        {
            "--model_family": "flux",
            "--model_type": "lora",
            "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
            "--output_dir": "/outputs/flux-lora",
            "--max_train_steps": 1000,
            "--lora_rank": 16,
        }
    )
    assert (spec.max_train_steps, spec.lora_rank, spec.ignored_keys) == (1000, 16, ["output_dir"])
    datasets = check_dataloader(
        [
            {
                "id": "training-images",
                "type": "local",
                "dataset_type": "image",
                "instance_data_dir": "/data/datasets/my-dataset",
                "caption_strategy": "textfile",
                "resolution": 1024,
            }
        ]
    )
    assert [(each.id, each.resolution) for each in datasets] == [("training-images", 1024)]


def test_an_upstream_style_file_parses() -> None:
    config = {
        **MINIMAL,
        "--resume_from_checkpoint": "latest",
        "--data_backend_config": "config/multidatabackend.json",
        "--aspect_bucket_rounding": 2,
        "--minimum_image_size": 0,
        "--lora_type": "standard",
        "--base_model_precision": "no_change",
        "--gradient_checkpointing": "true",
        "--vae_batch_size": 1,
        "--num_train_epochs": 0,
        "--caption_dropout_probability": 0.1,
        "--validation_torch_compile": "false",
        "--validation_negative_prompt": "blurry",
        "--disable_bucket_pruning": True,
        "--push_to_hub": False,
        "--report_to": "none",
        "--hub_model_id": "x",
        "--use_ema": "0",
        "--lora_alpha": "None",
    }
    spec = check_diffusion(config)
    assert spec.gradient_checkpointing is True
    assert spec.use_ema is False
    assert spec.lora_alpha is None
    assert (spec.delivery.push_to_hub, spec.delivery.hub_model_id) == (False, "x")


@pytest.mark.parametrize("spelling", ["--lora_rank", "lora_rank", "--lora-rank", "lora-rank"])
def test_dashes_do_not_matter(spelling: str) -> None:
    assert check_diffusion({**MINIMAL, spelling: "32"}).lora_rank == 32


def test_aliases_mean_the_same_key() -> None:
    assert check_diffusion({**MINIMAL, "--checkpointing_steps": 7}).checkpoint_step_interval == 7
    both = {**MINIMAL, "--checkpointing_steps": 7, "--checkpoint_step_interval": 8}
    assert problems_of(both)["--checkpoint_step_interval"][0] == "duplicate"


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    assert problems_of({**MINIMAL, "--lora_rnk": 4})["--lora_rnk"] == ("unknown_key", "Did you mean lora_rank?")


def test_all_problems_come_at_once() -> None:
    found = problems_of(
        {
            "--model_family": "sdxl",
            "--model_type": "full",
            "--use_dora": "true",
            "--lora_rank": "many",
            "--train_batch_size": 0,
            "--optimizer": "prodigy",
            "--max_train_steps": 10,
            "--num_train_epochs": 2,
            "--frobnicate": 1,
        }
    )
    assert {field: code for field, (code, _) in found.items()} == {
        "model_family": "unsupported",
        "model_type": "unsupported",
        "--use_dora": "unsupported",
        "lora_rank": "wrong_type",
        "train_batch_size": "out_of_range",
        "optimizer": "unsupported",
        "max_train_steps": "conflict",
        "--frobnicate": "unknown_key",
    }


def test_another_family_is_refused_by_name() -> None:
    with pytest.raises(ConfigRejected, match="sdxl is known; this build trains flux"):
        check_diffusion({**MINIMAL, "--model_family": "sdxl"})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_key_is_accepted_when_switched_off(name: str) -> None:
    assert check_diffusion({**MINIMAL, name: REFUSED[name][0][0]})
    assert problems_of({**MINIMAL, name: "something"})[name][0] == "unsupported"


def test_every_key_has_one_rule() -> None:
    assert not IGNORED & set(REFUSED)
    assert not (IGNORED | set(REFUSED)) & set(DiffusionSpec.__struct_fields__)


def test_steps_or_epochs_but_not_both() -> None:
    base = {"model_family": "flux", "model_type": "lora"}
    assert check_diffusion(base).num_train_epochs == 1
    assert check_diffusion({**base, "num_train_epochs": 3, "max_train_steps": 0}).num_train_epochs == 3
    assert check_diffusion({**base, "num_train_epochs": 0, "max_train_steps": 5}).max_train_steps == 5
    assert problems_of({**base, "num_train_epochs": 0, "max_train_steps": 0})["max_train_steps"][0] == "conflict"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"type": "aws"}, "type"),
        ({"dataset_type": "video"}, "dataset_type"),
        ({"caption_strategy": "parquet"}, "caption_strategy"),
        ({"caption_strategy": "telepathy"}, "caption_strategy"),
        ({"conditioning_data": "x"}, "conditioning_data"),
        ({"repeatz": 1}, "repeatz"),
        ({"repeats": -1}, "repeats"),
        ({"caption_strategy": "instanceprompt"}, "instance_prompt"),
        ({"instance_data_dir": None}, "instance_data_dir"),
    ],
)
def test_a_dataloader_entry_names_what_is_wrong(entry: dict[str, Any], field: str) -> None:
    good = {"id": "a", "type": "local", "dataset_type": "image", "instance_data_dir": "/data"}
    with pytest.raises(ConfigRejected) as rejected:
        check_dataloader([{**good, **entry}])
    assert [problem.field for problem in rejected.value.problems] == [f"dataloader[0].{field}"]


def test_disabled_and_text_cache_entries_are_skipped_and_one_image_dataset_is_needed() -> None:
    good = {"id": "a", "instance_data_dir": "/data"}
    text = {"id": "t", "dataset_type": "text_embeds", "default": True}
    off = {"id": "b", "instance_data_dir": "/b", "disabled": "true"}
    assert [each.id for each in check_dataloader([good, text, off])] == ["a"]
    with pytest.raises(ConfigRejected, match="no enabled image dataset"):
        check_dataloader([text, off])
    with pytest.raises(ConfigRejected, match="used twice"):
        check_dataloader([good, good])


def test_demo_and_test_configs_are_valid() -> None:
    check_diffusion(json.loads((TRAINER / "demo_config.json").read_text()))
    check_dataloader(json.loads((TRAINER / "demo_dataloader.json").read_text()))
    check_diffusion(CONFIG)
