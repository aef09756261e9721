# pyright: basic
"""The config lines of the source documents, as printed there: they are checked as they stand and run on a tiny base.

Only what a tiny base on a CPU cannot do is set otherwise for the run: the base's path, sizes, and how many steps.
"""

from pathlib import Path
from typing import Any

import pytest
from attempts import FIXTURE, AttemptStarter

from shared.contracts.run import ExitCode
from shared.contracts.training.diffusion import check_diffusion
from shared.contracts.training.spec import check_training

SUBMITTED = {
    "--model_family": "flux",
    "--model_type": "lora",
    "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "--output_dir": "/outputs/flux-lora",
    "--max_train_steps": 1000,
    "--lora_rank": 16,
}
SUBMITTED_DATALOADER = [
    {
        "id": "training-images",
        "type": "local",
        "dataset_type": "image",
        "instance_data_dir": "/data/datasets/my-dataset",
        "caption_strategy": "textfile",
        "resolution": 1024,
    }
]
SERVERLESS = {
    "model_name": "black-forest-labs/FLUX.1-dev",
    "resolution": 1024,
    "train_batch_size": 1,
    "num_train_epochs": 10,
    "checkpointing_steps": 500,
    "learning_rate": 1e-5,
}
TINY: dict[str, Any] = {
    "pretrained_model_name_or_path": str(FIXTURE), "aspect_bucket_alignment": 8, "tokenizer_max_length": 16,
    "resolution": 32, "mixed_precision": "no", "gradient_checkpointing": False,
}  # fmt: skip


def test_the_submitted_config_is_accepted_as_printed() -> None:
    checked = check_training(SUBMITTED, SUBMITTED_DATALOADER)
    assert (checked.spec.max_train_steps, checked.spec.lora_rank) == (1000, 16)
    assert checked.spec.ignored_keys == ["output_dir"]
    dataset = checked.datasets[0]
    assert (dataset.id, dataset.caption_strategy, dataset.resolution) == ("training-images", "textfile", 1024)
    spec = check_diffusion(SERVERLESS)
    assert (spec.model_family, spec.model_type, spec.num_train_epochs) == ("flux", "lora", 10)
    assert (spec.pretrained_model_name_or_path, spec.checkpoint_step_interval) == ("black-forest-labs/FLUX.1-dev", 500)


@pytest.mark.parametrize(
    ("config", "shorter"),
    [(SUBMITTED, {"--max_train_steps": 2}), (SERVERLESS, {"num_train_epochs": 1, "model_family": "flux"})],
    ids=["submitted", "serverless"],
)
def test_the_printed_config_trains(
    start: AttemptStarter, digits: Path, config: dict[str, Any], shorter: dict[str, Any]
) -> None:
    entry = {**SUBMITTED_DATALOADER[0], "instance_data_dir": str(digits), "resolution": 32}
    printed = {
        key: value
        for key, value in config.items()
        if key.lstrip("-") not in {*TINY, "model_name", *(name.lstrip("-") for name in shorter)}
    }
    named = {"model_type": "lora"} if config is SERVERLESS else {}
    attempt = start(exactly={**printed, **shorter, **TINY, **named}, dataloader=[entry])
    assert attempt.run() == ExitCode.DONE
    assert len(attempt.losses()) == (2 if config is SUBMITTED else 20)
    assert attempt.lora.exists()
    assert attempt.data("hello")[0]["ignored_keys"] == (["output_dir"] if config is SUBMITTED else [])


def test_shuffled_tags_and_kept_tokens_train(start: AttemptStarter, digits: Path) -> None:
    entry = {
        "id": "tags",
        "instance_data_dir": str(digits),
        "caption_strategy": "textfile",
        "caption_extension": ".txt",
        "caption_shuffle": {"enable": True, "count": 3, "split_on": "space", "position_start": 1},
    }
    attempt = start(max_train_steps=2, dataloader=[entry])
    assert attempt.run() == ExitCode.DONE
    assert len(attempt.losses()) == 2
