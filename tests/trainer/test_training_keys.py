# pyright: basic
import json
from pathlib import Path
from typing import Any

import pytest
from attempts import CONFIG

from shared.contracts.training.datasets import check_dataloader
from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from shared.contracts.training.diffusion_keys import IGNORED, REFUSED
from shared.contracts.training.diffusion_rules import OTHER_OPTIMIZERS, OTHER_PRECISIONS
from shared.contracts.training.problems import ConfigRejected
from shared.contracts.training.spec import check_training

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
            "--model_family": "kolors",
            "--model_type": "full",
            "--lora_type": "lycoris",
            "--lora_rank": "many",
            "--train_batch_size": 0,
            "--optimizer": "soap",
            "--base_model_precision": "int8-quanto",
            "--max_train_steps": 10,
            "--num_train_epochs": 2,
            "--frobnicate": 1,
        }
    )
    assert {field: code for field, (code, _) in found.items()} == {
        "model_family": "unsupported",
        "--lora_type": "unsupported",
        "lora_rank": "wrong_type",
        "train_batch_size": "out_of_range",
        "optimizer": "unsupported",
        "base_model_precision": "unsupported",
        "max_train_steps": "conflict",
        "--frobnicate": "unknown_key",
    }
    assert found["optimizer"][1] == "Use adafactor."
    assert found["base_model_precision"][1] == "Use int8-torchao."


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_key_is_accepted_when_switched_off(name: str) -> None:
    assert check_diffusion({**MINIMAL, name: REFUSED[name][0][0]})
    code, advice = problems_of({**MINIMAL, name: "something"})[name]
    assert code == "unsupported"
    assert advice.endswith(".")


@pytest.mark.parametrize(
    ("table", "field"), [(OTHER_OPTIMIZERS, "optimizer"), (OTHER_PRECISIONS, "base_model_precision")]
)
def test_the_nearest_of_what_is_not_built_is_built(table: dict[str, str], field: str) -> None:
    for name, nearest in table.items():
        assert problems_of({**MINIMAL, field: name})[field] == ("unsupported", f"Use {nearest}.")
        assert getattr(check_diffusion({**MINIMAL, field: nearest}), field) == nearest


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("flux", "snr_gamma", 5), ("sd3", "timestep_bias_strategy", "later"), ("sdxl", "flow_schedule_shift", 3),
        ("sdxl", "flux_lora_target", "tiny"), ("sd3", "flux_guidance_value", 3.5),
        ("flux", "prediction_type", "epsilon"), ("sd1x", "prediction_type", "flow_matching"),
        ("flux", "model_flavour", "unheard-of"),
    ],
)  # fmt: skip
def test_a_key_that_means_nothing_for_the_family_is_refused(family: str, key: str, value: object) -> None:
    assert key in problems_of({**MINIMAL, "--model_family": family, key: value})


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ({"huber_c": 0.2}, ["huber_c"]),
        ({"huber_c": 0.2, "loss_type": "huber"}, []),
        ({"noise_offset": 0.2}, ["noise_offset"]),
        ({"noise_offset": 0.2, "offset_noise": True}, []),
        ({"ema_decay": 0.9}, ["ema_decay"]),
        ({"model_type": "full", "lora_rank": 8}, ["lora_rank"]),
        ({"validation_negative_prompt": "ugly"}, ["validation_negative_prompt"]),
        ({"model_family": "sdxl", "validation_negative_prompt": "ugly"}, []),
        ({"gradient_checkpointing": False, "gradient_checkpointing_interval": 2}, ["gradient_checkpointing_interval"]),
        ({"report_to": "wandb", "crepa_lambda": 0.5}, ["crepa_lambda", "report_to"]),
    ],
)
def test_keys_without_an_effect_are_listed(given: dict[str, Any], idle: list[str]) -> None:
    base = {"model_family": "flux", "model_type": "lora", "max_train_steps": 10}
    assert check_diffusion({**base, **given}).ignored_keys == idle


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model_type": "full", "base_model_precision": "nf4-bnb"}, "base_model_precision"),
        ({"use_dora": True, "base_model_precision": "int8-torchao"}, "use_dora"),
        ({"flow_use_uniform_schedule": True, "flow_use_beta_schedule": True}, "flow_use_beta_schedule"),
        ({"resume_from_checkpoint": "checkpoint-40"}, "resume_from_checkpoint"),
        ({"optimizer_config": "weight_decay=0.1,rho=3"}, "optimizer_config"),
        ({"optimizer_config": "weight_decay=0.1", "adam_weight_decay": 0.2}, "adam_weight_decay"),
        ({"disk_low_threshold": "plenty"}, "disk_low_threshold"),
        ({"flow_custom_timesteps": "1,x"}, "flow_custom_timesteps"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(given: dict[str, Any], field: str) -> None:
    assert field in problems_of({"model_family": "flux", "model_type": "lora", "max_train_steps": 10, **given})


def test_values_are_read_as_what_they_say() -> None:
    spec = check_diffusion(
        {
            "model_name": "black-forest-labs/FLUX.1-schnell",
            "optimizer_config": "weight_decay=0.1, eps=1e-6",
            "peft_lora_target_modules": "to_q, to_k",
            "disk_low_threshold": "2G",
            "max_train_steps": 8,
            "num_train_epochs": 2,
            "strict_epoch_limit": "true",
        }
    )
    assert (spec.model_family, spec.model_type) == ("flux", "lora")
    assert (spec.adam_weight_decay, spec.adam_epsilon) == (0.1, 1e-6)
    assert spec.peft_lora_target_modules == ["to_q", "to_k"]
    assert spec.disk_low_bytes == 2 * 1024**3
    assert (spec.max_train_steps, spec.num_train_epochs) == (8, 2)
    assert check_diffusion({**MINIMAL, "model_flavour": "krea"}).pretrained_model_name_or_path.endswith("Krea-dev")
    area = check_diffusion({"model_family": "sd1x", "model_type": "full", "resolution_type": "area"})
    assert (area.resolution, area.learning_rate) == (0.26, 1e-5)


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
        ({"caption_strategy": "csv"}, "caption_strategy"),
        ({"caption_strategy": "parquet"}, "parquet"),
        ({"caption_strategy": "parquet", "parquet": {"path": "t.csv"}}, "parquet"),
        ({"parquet": {"path": "t", "filename_column": "f", "caption_column": "c", "colour": 1}}, "parquet.colour"),
        ({"parquet": "t.csv"}, "parquet"),
        ({"caption_shuffle": {"enable": True, "split_on": "slash"}}, "caption_shuffle"),
        ({"caption_shuffle": {"enable": True, "count": 0}}, "caption_shuffle.count"),
        ({"crop_style": "face"}, "crop_style"),
        ({"crop": True, "crop_aspect": "closest"}, "crop_aspect_buckets"),
        ({"crop": True, "vae_cache_clear_each_epoch": True}, "vae_cache_clear_each_epoch"),
        ({"maximum_image_size": 2048}, "target_downsample_size"),
        ({"is_regularisation_data": True}, "is_regularisation_data"),
        ({"probability": 0}, "probability"),
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


def test_the_config_sets_what_an_entry_does_not() -> None:
    config = {**MINIMAL, "--caption_strategy": "textfile", "--minimum_image_size": 64}
    entries = [
        {"id": "a", "instance_data_dir": "/data"},
        {"id": "b", "instance_data_dir": "/data", "caption_strategy": "filename", "minimum_image_size": 8},
    ]
    found = [(each.caption_strategy, each.minimum_image_size) for each in check_training(config, entries).datasets]
    assert found == [("textfile", 64), ("filename", 8)]


def test_a_dataset_is_there_from_the_first_step_and_steps_are_counted_where_they_gate() -> None:
    late = {"id": "a", "instance_data_dir": "/data", "start_step": 5}
    with pytest.raises(ConfigRejected, match="from the first step on"):
        check_dataloader([late])
    both = [late, {"id": "b", "instance_data_dir": "/data"}]
    assert len(check_training(MINIMAL, both).datasets) == 2
    epochs = {"model_family": "flux", "model_type": "lora", "num_train_epochs": 2}
    with pytest.raises(ConfigRejected, match="start_step and end_step of a"):
        check_training(epochs, both)


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


def test_an_empty_negative_prompt_is_a_prompt_and_not_the_default() -> None:
    assert check_diffusion({**MINIMAL, "--validation_negative_prompt": ""}).validation_negative_prompt == ""
    assert check_diffusion(MINIMAL).validation_negative_prompt
