"""The configs of language models, as their users write them."""

from typing import Any

import pytest

from shared.contracts.training.llm import LlmSpec, check_llm, is_llm_config
from shared.contracts.training.llm_keys import ALIASES, IGNORED, REFUSED, SECTIONS
from shared.contracts.training.problems import ConfigRejected
from shared.contracts.training.spec import check_training, planned_steps

BRIEF: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-7B",
    "training": {"method": "sft", "num_epochs": 3, "learning_rate": 5e-4, "lora_r": 16, "lora_alpha": 32},
    "predictions": {"enabled": True, "sample_count": 5, "sample_frequency": "epoch"},
}
ROWS: dict[str, Any] = {"id": "chats", "type": "local", "dataset_type": "text", "instance_data_dir": "/data/chats"}


def problems_of(config: dict[str, Any], dataloader: list[dict[str, Any]] | None = None) -> dict[str, tuple[str, str]]:
    with pytest.raises(ConfigRejected) as rejected:
        check_training(config, [ROWS] if dataloader is None else dataloader)
    return {each.field: (each.code, f"{each.message} {each.advice}") for each in rejected.value.problems}


def spec_of(config: dict[str, Any]) -> LlmSpec:
    return check_llm({"model": "m", **config})


def test_the_printed_config_is_accepted_as_printed() -> None:
    checked = check_training(BRIEF, [ROWS])
    spec = checked.spec
    assert isinstance(spec, LlmSpec)
    assert (spec.pretrained_model_name_or_path, spec.method, spec.model_type) == ("Qwen/Qwen2.5-7B", "sft", "lora")
    assert (spec.num_train_epochs, spec.max_train_steps, spec.learning_rate) == (3, 0, 5e-4)
    assert (spec.lora_rank, spec.effective_lora_alpha) == (16, 32)
    assert (spec.predictions_enabled, spec.prediction_count, spec.validate_each_epoch) == (True, 5, True)
    assert [each.id for each in checked.sources] == ["chats"]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"training": {"max_steps": "20"}}, "max_train_steps", 20),
        ({"training": {"batch_size": 2}}, "train_batch_size", 2),
        ({"per_device_train_batch_size": 2}, "train_batch_size", 2),
        ({"training": {"max_seq_length": 2048}}, "max_length", 2048),
        ({"training": {"warmup_ratio": 0.1}}, "warmup_ratio", 0.1),
        ({"training": {"lr_scheduler_type": "cosine"}}, "lr_scheduler", "cosine"),
        ({"training": {"weight_decay": 0.1}}, "adam_weight_decay", 0.1),
        ({"training": {"optim": "adamw_torch"}}, "optimizer", "adamw"),
        ({"training": {"use_lora": False}}, "model_type", "full"),
        ({"lora": {"r": 4, "alpha": 8, "dropout": 0.05}}, "lora_rank", 4),
        ({"training": {"lora": {"alpha": 8}}}, "lora_alpha", 8),
        ({"lora": {"target_modules": ["q_proj", "v_proj"]}}, "peft_lora_target_modules", ["q_proj", "v_proj"]),
        ({"lora_target_modules": "q_proj, v_proj"}, "peft_lora_target_modules", ["q_proj", "v_proj"]),
        ({"lora_target_modules": "all-linear"}, "peft_lora_target_modules", None),
        ({"quantization": {"load_in_4bit": True}}, "quantization", "4bit"),
        ({"quantization": "8bit"}, "quantization", "8bit"),
        ({"quantization": {"enabled": True, "bits": 8}}, "quantization", "8bit"),
        ({"quantization": {"enabled": False, "bits": 8}}, "quantization", "none"),
        ({"load_in_8bit": "true"}, "quantization", "8bit"),
        ({"training": {"bf16": False}}, "mixed_precision", "no"),
        ({"training": {"fp16": True}}, "mixed_precision", "fp16"),
        ({"torch_dtype": "float32"}, "mixed_precision", "no"),
        ({"model": {"name": "other"}}, "pretrained_model_name_or_path", "other"),
        ({"predictions": {"sample_frequency": 25}}, "validation_step_interval", 25),
        ({"predictions": {"sample_frequency": "step", "sample_steps": 7}}, "validation_step_interval", 7),
        ({"predictions": {"max_new_tokens": 12}}, "prediction_max_length", 12),
        ({"predictions": False}, "predictions_enabled", False),
        ({"eval_strategy": "epoch"}, "validate_each_epoch", True),
        ({"save_strategy": "epoch"}, "save_each_epoch", True),
        ({"training": {"save_steps": 9}}, "checkpoint_step_interval", 9),
        ({"training": {"logging_steps": 10}}, "webhook_reporting_interval", 10),
        ({"training": {"method": "dpo", "beta": 0.3}}, "beta", 0.3),
        ({"training": {"method": "dpo"}}, "learning_rate", 1e-5),
        ({"full_finetuning": True}, "learning_rate", 2e-5),
        ({"evaluation": {"split": 0.1}}, "eval_split", 0.1),
        ({"chat_template": "chatml"}, "chat_template", "chatml"),
        ({"max_steps": -1, "num_epochs": 2}, "num_train_epochs", 2),
    ],
)
def test_each_spelling_means_its_field(config: dict[str, Any], field: str, value: object) -> None:
    assert getattr(spec_of(config), field) == value


def test_flat_keys_with_dashes_say_the_same_as_sections() -> None:
    flat = {"--model_family": "llm", "--model": "m", "--method": "dpo", "--max-steps": "5", "--lora-r": "8"}
    nested = {"model": "m", "training": {"method": "dpo", "max_steps": 5, "lora_r": 8}}
    assert check_training(flat, [ROWS]).spec == check_training(nested, [ROWS]).spec


@pytest.mark.parametrize(
    ("config", "field", "code", "said"),
    [
        ({"training": {"lora_rr": 8}}, "training.lora_rr", "unknown_key", "Did you mean lora_r?"),
        ({"predictions": {"enabledd": True}}, "predictions.enabledd", "unknown_key", "Did you mean enabled?"),
        ({"frobnicate": 1}, "frobnicate", "unknown_key", "not a known key"),
        ({"model": {"name": "m", "trust_remote_code": True}}, "model.trust_remote_code", "unsupported", "never run"),
        ({"training": {"method": "ppo"}}, "training.method", "wrong_type", "'ppo' does not fit"),
        ({"training": {"lora_r": [1]}}, "training.lora_r", "wrong_type", "one value is meant here, not a list"),
        ({"training": {"lora_r": 0}}, "training.lora_r", "out_of_range", "outside 1 to 1024"),
        ({"training": {"max_steps": 5, "num_epochs": 2}}, "training.max_steps", "conflict", "both"),
        ({"lora_r": 8, "lora": {"r": 8}}, "lora.r", "duplicate", "lora_r says this too"),
        ({"training": {"method": "dpo", "packing": True}}, "training.packing", "conflict", "pairs are not packed"),
        ({"quantization": {"load_in_4bit": True, "bits": 8}}, "quantization.load_in_4bit", "conflict", "4 and 8 bit"),
        ({"use_lora": False, "load_in_4bit": True}, "load_in_4bit", "conflict", "cannot be trained whole"),
        ({"load_in_4bit": True, "merge_and_save": True}, "merge_and_save", "conflict", "cannot be merged"),
        ({"use_lora": False, "merge_lora": True}, "merge_lora", "conflict", "no adapter to merge"),
        ({"predictions": {"frequency": 5}, "eval_steps": 2}, "predictions.frequency", "conflict", "diff"),
        ({"bf16": True, "fp16": True}, "fp16", "conflict", "both on"),
        ({"predictions": {"temperature": 0.7}}, "predictions.temperature", "unsupported", "greedy"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_the_name_it_was_given(
    config: dict[str, Any], field: str, code: str, said: str
) -> None:
    problems = problems_of({"model": "m", **config})
    assert list(problems) == [field]
    assert problems[field][0] == code
    assert said in problems[field][1]


def test_a_config_without_a_model_says_so() -> None:
    assert problems_of({"training": {"method": "sft"}}) == {
        "model": ("missing", "no model is named Set model to a folder or a hub id.")
    }


def test_every_name_has_one_meaning() -> None:
    fields = {*LlmSpec.__struct_fields__}
    assert not ALIASES.keys() & IGNORED
    assert not ALIASES.keys() & REFUSED.keys()
    assert not fields & IGNORED
    assert not SECTIONS.keys() & (IGNORED | REFUSED.keys())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BRIEF, True),
        ({"--model_family": "flux", "--model_type": "lora"}, False),
        ({"--model_family": "llm", "--model": "m"}, True),
        ({"method": "sft"}, True),
        ({}, False),
    ],
)
def test_sections_and_names_tell_a_language_model_from_a_diffusion_model(
    config: dict[str, Any], *, expected: bool
) -> None:
    assert is_llm_config(config) is expected


def test_steps_are_planned_in_any_spelling_and_epochs_are_not() -> None:
    assert planned_steps({"model": "m", "training": {"max_steps": 12}}) == 12
    assert planned_steps({"model": "m", "--max_train_steps": "12"}) == 12
    assert planned_steps(BRIEF) is None
    assert planned_steps({"model": "m", "training": {"max_steps": -1, "num_epochs": 1}}) is None


@pytest.mark.parametrize(
    ("member", "found"),
    [
        ("/data/chats", [("dataset", "/data/chats", False)]),
        ({"path": "/data/a.jsonl"}, [("dataset", "/data/a.jsonl", False)]),
        ({"train_path": "/data/a", "eval_path": "/data/b"},
         [("dataset", "/data/a", False), ("dataset-eval", "/data/b", True)]),
        (["/a", {"path": "/b", "id": "second"}], [("dataset-1", "/a", False), ("second", "/b", False)]),
    ],
)  # fmt: skip
def test_the_configs_own_dataset_is_a_path_an_object_or_a_list(member: Any, found: list[Any]) -> None:
    checked = check_training({**BRIEF, "dataset": member}, [])
    assert [(each.id, each.instance_data_dir, each.evaluation) for each in checked.text_datasets] == found


def test_a_dataset_may_say_how_much_is_held_out_and_what_its_rows_are() -> None:
    entry = {**ROWS, "eval_split": 0.1, "format": "alpaca", "max_samples": 50}
    checked = check_training(BRIEF, [entry])
    assert isinstance(checked.spec, LlmSpec)
    assert checked.spec.eval_split == 0.1
    assert (checked.text_datasets[0].row_format, checked.text_datasets[0].max_num_samples) == ("instruction", 50)


@pytest.mark.parametrize(
    ("entries", "field", "said"),
    [
        ([], "dataloader", "no dataset to train on"),
        ([{**ROWS, "dataset_type": "image"}], "dataloader[0].dataset_type", "not 'image'"),
        ([{**ROWS, "type": "huggingface"}], "dataloader[0].type", "reads local files"),
        ([{**ROWS, "instance_data_dir": "tatsu-lab/alpaca"}], "dataloader[0].instance_data_dir", "Export it as JSONL"),
        ([{"id": "a"}], "dataloader[0].instance_data_dir", "no folder and no file is named"),
        ([{**ROWS, "instance_data_dri": "/a"}], "dataloader[0].instance_data_dri", "Did you mean instance_data_dir?"),
        ([{**ROWS, "format": "sharegpt"}], "dataloader[0].format", "not a known format"),
        ([{**ROWS, "eval_split": 2}], "dataloader[0].eval_split", "outside 0 to 0.9"),
        ([ROWS, ROWS], "dataloader", "used twice"),
        ([{**ROWS, "eval": True}], "dataloader", "no dataset to train on"),
    ],
)
def test_a_wrong_dataset_is_refused_at_its_place(entries: list[dict[str, Any]], field: str, said: str) -> None:
    problems = problems_of(BRIEF, entries)
    assert list(problems) == [field]
    assert said in problems[field][1]


def test_delivery_keys_may_stand_in_the_training_section() -> None:
    spec = spec_of({"training": {"push_to_hub": True, "hub_model_id": "me/chats"}})
    assert (spec.delivery.push_to_hub, spec.delivery.hub_model_id) == (True, "me/chats")
