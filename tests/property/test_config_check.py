"""Whatever JSON is submitted: a spec or a refusal that names the field, never another failure."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.config_secrets import secret_problems
from shared.contracts.training import datasets, diffusion
from shared.contracts.training.datasets import check_dataloader
from shared.contracts.training.diffusion import check_diffusion
from shared.contracts.training.problems import ConfigRejected

CONFIG = {"--model_family": "flux", "--model_type": "lora", "--max_train_steps": 10}
ENTRY = {"id": "a", "type": "local", "dataset_type": "image", "instance_data_dir": "/data"}
WORDS = ["flux", "lora", "none", "true", "nan", "inf", "1e999", "9" * 400, "[", '{"a": 1}', "parquet", "text_embeds"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(WORDS),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
config_keys = st.sampled_from(sorted(diffusion.KNOWN_KEYS))
entry_keys = st.sampled_from(sorted(datasets.KNOWN_KEYS))


@given(st.dictionaries(config_keys, values, max_size=5))
def test_any_value_of_a_known_key_gives_a_spec_or_a_refusal(changed: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigRejected):
        check_diffusion({**CONFIG, **changed})
    secret_problems(changed, [changed])


@given(st.lists(st.dictionaries(entry_keys | st.text(max_size=8), values, max_size=5), max_size=3))
def test_any_object_as_dataloader_entry_gives_datasets_or_a_refusal(entries: list[dict[str, Any]]) -> None:
    for whole in (entries, [{**ENTRY, **entry} for entry in entries]):
        with contextlib.suppress(ConfigRejected):
            check_dataloader(whole)


SINGLE = sorted(
    set(diffusion.DiffusionSpec.__struct_fields__)
    - {"ignored_keys", "delivery", "user_prompt_library", "peft_lora_target_modules"}
)


@pytest.mark.parametrize("key", SINGLE)
@pytest.mark.parametrize("value", [["flux"], {"a": 1}, [], {}])
def test_list_or_object_for_one_value_is_named_as_a_wrong_type(key: str, value: object) -> None:
    given_keys = {**CONFIG, f"--{key}": value}
    if key in {"num_train_epochs", "max_train_steps"}:
        del given_keys["--max_train_steps"]
        given_keys[f"--{key}"] = value
    with pytest.raises(ConfigRejected) as refused:
        check_diffusion(given_keys)
    assert [(problem.field, problem.code) for problem in refused.value.problems] == [(key, "wrong_type")]


@pytest.mark.parametrize(
    "key", ["id", "type", "dataset_type", "caption_strategy", "instance_data_dir", "repeats", "crop"]
)
@pytest.mark.parametrize("value", [["a"], {"a": 1}, [], {}])
def test_list_or_object_in_a_dataloader_entry_is_named_as_a_wrong_type(key: str, value: object) -> None:
    with pytest.raises(ConfigRejected) as refused:
        check_dataloader([{**ENTRY, key: value}])
    assert [(problem.field, problem.code) for problem in refused.value.problems] == [
        (f"dataloader[0].{key}", "wrong_type")
    ]


def test_endless_nesting_in_a_string_is_a_wrong_type() -> None:
    with pytest.raises(ConfigRejected, match="peft_lora_target_modules"):
        check_diffusion({**CONFIG, "--peft_lora_target_modules": "[" * 100_000})
    assert secret_problems({"webhook_config": "[" * 100_000}, []) == []
