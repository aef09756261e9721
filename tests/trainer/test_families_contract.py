# pyright: basic
"""The contract's families and the trainer's are the same, and what differs between two pictures or texts is kept."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny.pipelines import RECIPES

from shared.contracts.training.diffusion import check_diffusion
from shared.contracts.training.families import FAMILIES, DiffusionFamily
from shared.contracts.training.problems import ConfigRejected
from trainer.data.buckets import Placement
from trainer.families.protocol import collated
from trainer.families.registry import family_entries, load_family

MINIMAL = {"model_type": "lora", "max_train_steps": 1}


def test_contract_registry_and_recipes_name_the_same_families() -> None:
    assert set(get_args(DiffusionFamily)) == set(FAMILIES) == set(family_entries()) == set(RECIPES)
    for name, entry in family_entries().items():
        assert load_family(name).name == name
        assert (entry.objective == "flow") == FAMILIES[name].flow
        assert entry.model_types == ["lora", "full"]


def test_the_registry_answers_without_torch() -> None:
    program = (
        "import sys; from trainer.families.registry import family_entries as f; f(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_alone_gives_its_base_size_length_and_guidance(name: str) -> None:
    spec, family = check_diffusion({**MINIMAL, "model_family": name}), FAMILIES[name]
    assert (spec.pretrained_model_name_or_path, spec.resolution) == (family.base, family.resolution)
    assert (spec.tokenizer_max_length, spec.validation_guidance) == (family.text_length, family.guidance)
    other = check_diffusion({**MINIMAL, "model_family": name, "resolution": 640, "tokenizer_max_length": 50})
    assert (other.resolution, other.tokenizer_max_length) == (640, 50)


def test_pixart_is_another_spelling_of_pixart_sigma() -> None:
    assert check_diffusion({**MINIMAL, "model_family": "pixart"}).model_family == "pixart_sigma"


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("flux", "snr_gamma", 5),
        ("flux", "prediction_type", "epsilon"),
        ("flux", "rescale_betas_zero_snr", True),
        ("flux", "timestep_bias_strategy", "later"),
        ("sdxl", "flow_use_uniform_schedule", True),
        ("sdxl", "flow_schedule_shift", 3),
        ("sdxl", "prediction_type", "flow_matching"),
        ("sdxl", "flow_custom_timesteps", "0.5"),
    ],
)
def test_a_key_of_the_other_objective_is_refused_and_may_be_off(family: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigRejected) as rejected:
        check_diffusion({**MINIMAL, "model_family": family, key: value})
    assert {(problem.field, problem.code) for problem in rejected.value.problems} == {(key, "conflict")}
    assert check_diffusion({**MINIMAL, "model_family": family, key: None})


def test_sdxl_is_told_each_pictures_size_crop_and_target() -> None:
    placement = Placement(size=(64, 32), resized=(80, 40), offset=(16, 8))
    assert load_family("sdxl").conditioning_of(placement)["time_ids"].tolist() == [40, 80, 8, 16, 32, 64]
    assert load_family("sd1x").conditioning_of(placement) == {}


def test_texts_of_different_lengths_are_filled_up_and_masked() -> None:
    short, long = ({"states": torch.ones(n, 2), "mask": torch.ones(n, dtype=torch.bool)} for n in (2, 3))
    both = collated([short, long])
    assert both["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert both["states"][0, 2].tolist() == [0, 0]


def test_all_linear_takes_every_linear_layer_and_the_default_the_attention() -> None:
    network = torch.nn.ModuleDict(
        {"to_q": torch.nn.Linear(2, 2), "ff": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}
    )
    family = load_family("sdxl")
    default = check_diffusion({**MINIMAL, "model_family": "sdxl"})
    wide = check_diffusion({**MINIMAL, "model_family": "sdxl", "peft_lora_target_modules": ["all-linear"]})
    named = check_diffusion({**MINIMAL, "model_family": "sdxl", "peft_lora_target_modules": '["ff"]'})
    assert family.lora_targets(network, default) == family.attention_endings
    assert family.lora_targets(network, wide) == ["to_q", "ff"]
    assert family.lora_targets(network, named) == ["ff"]
