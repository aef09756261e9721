# pyright: basic
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.archives import ArchiveLimits
from trainer.control import Control
from trainer.downloads import DownloadRules
from trainer.entry.dialects import completed_config, completed_dataloader, family_of
from trainer.entry.intake import IntakeRules, TakenIn, take_in
from trainer.entry.results import spoken
from trainer.failures import AttemptFailed
from trainer.families.registry import family_entries

# As printed in the brief of the serverless handler.
BRIEF_CONFIG = {
    "model_name": "black-forest-labs/FLUX.1-dev",
    "resolution": 1024,
    "train_batch_size": 1,
    "num_train_epochs": 10,
    "checkpointing_steps": 500,
    "learning_rate": 1e-5,
}
BRIEF_DATALOADER = {"caption_extension": ".txt", "shuffle_tags": True, "keep_tokens": 1}
PICTURE = {"name": "a/1.png", "data": base64.b64encode(b"picture").decode()}


def taken(tmp_path: Path, given: dict[str, Any]) -> TakenIn:
    rules = IntakeRules(work_root=tmp_path, downloads=DownloadRules(patience_s=0), archives=ArchiveLimits())
    return take_in(given, "job-1", rules, Control())


def refusal(tmp_path: Path, given: dict[str, Any]) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        taken(tmp_path, given)
    assert failed.value.advice
    return failed.value


def own_spec(**more: Any) -> dict[str, Any]:
    plain = {"job_id": "j", "attempt_id": "a-1", "attempt_number": 1, "gateway_url": "http://127.0.0.1:1"}
    return {**plain, "config": {}, "dataloader": [], "output_prefix": "j", **more}


def test_the_brief_as_printed_becomes_a_spec_on_the_dataset_that_came_along(tmp_path: Path) -> None:
    given = {"dataset_files": [PICTURE], "config": BRIEF_CONFIG, "dataloader": BRIEF_DATALOADER}
    order = taken(tmp_path, given).order
    assert order.spec.gateway_url is None
    assert order.spec.config["pretrained_model_name_or_path"] == "black-forest-labs/FLUX.1-dev"
    assert (order.spec.config["model_family"], order.spec.config["model_type"]) == ("flux", "lora")
    assert "model_name" not in order.spec.config
    (entry,) = order.spec.dataloader
    assert entry["caption_strategy"] == "textfile"
    assert entry["caption_shuffle"] == {"enable": True, "count": 4, "split_on": "comma", "position_start": 1}
    assert (Path(entry["instance_data_dir"]) / "a" / "1.png").read_bytes() == b"picture"
    assert order.work_dir == tmp_path / "job-1"


def test_a_repeat_under_one_name_keeps_the_dataset_and_other_sources_replace_it(tmp_path: Path) -> None:
    given = {"dataset_files": [PICTURE], "config": BRIEF_CONFIG}
    first = taken(tmp_path, given).order
    kept = tmp_path / "job-1" / "dataset" / "a" / "1.png"
    kept.write_bytes(b"still the first")
    assert taken(tmp_path, given).order == first
    assert kept.read_bytes() == b"still the first"
    taken(tmp_path, {**given, "dataset_files": [{**PICTURE, "name": "2.png"}]})
    assert [path.name for path in (tmp_path / "job-1" / "dataset").rglob("*.png")] == ["2.png"]


def test_dashes_and_a_list_are_taken_as_they_are(tmp_path: Path) -> None:
    config = {"--model_family": "sdxl", "--model_type": "full", "--pretrained_model_name_or_path": "x/y"}
    entries = [
        {"id": "one", "instance_data_dir": "a"},
        {"id": "cache", "dataset_type": "text_embeds", "cache_dir": "cache"},
    ]
    order = taken(tmp_path, {"dataset_files": [PICTURE], "config": config, "dataloader": entries}).order
    assert order.spec.config == config
    assert order.spec.dataloader[0] == {"id": "one", "instance_data_dir": str(tmp_path / "job-1" / "dataset" / "a")}
    assert order.spec.dataloader[1] == entries[1]


def test_the_control_planes_own_form_is_taken_with_its_token(tmp_path: Path) -> None:
    order = taken(tmp_path, {"run_spec": own_spec(), "token": "t", "max_run_s": 60}).order
    assert (order.spec.attempt_id, order.token, order.max_run_s) == ("a-1", "t", 60.0)
    assert order.work_dir == tmp_path / "a-1"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "input.config"),
        ({"config": {}}, "input.config"),
        ({"config": BRIEF_CONFIG, "datset_url": "x"}, "Did you mean dataset_url?"),
        ({"config": {"model_name": "who/knows"}}, "family of 'who/knows'"),
        ({"config": BRIEF_CONFIG, "dataloader": "x"}, "input.dataloader"),
        ({"config": BRIEF_CONFIG, "dataset_files": "x"}, "a list is needed"),
        ({"config": BRIEF_CONFIG, "dataset_files": [{"name": "x.png"}]}, "dataset_files[0]"),
        ({"config": BRIEF_CONFIG, "dataset_files": [{"name": "x.png", "data": "*"}]}, "not base64"),
        ({"config": BRIEF_CONFIG, "dataset_files": [{"name": "/x.png", "data": "QQ=="}]}, "not a file name"),
        ({"config": BRIEF_CONFIG, "dataset_files": [{"name": "x.sh", "data": "QQ=="}]}, "neither an archive"),
        ({"config": BRIEF_CONFIG, "dataset_files": [{"name": "../x.png", "data": "QQ=="}]}, "not a file name"),
        ({"config": BRIEF_CONFIG, "dataset_url": "ftp://host/x"}, "dataset_url[0]"),
        ({"config": BRIEF_CONFIG, "dataset_url": "s3://bucket/x"}, "none is set up on this machine"),
        ({"config": BRIEF_CONFIG, "max_run_s": -1}, "max_run_s"),
        ({"config": BRIEF_CONFIG, "job_id": "../x"}, "input.job_id"),
        ({"run_spec": {"job_id": 1}}, "input.run_spec"),
        ({"run_spec": own_spec()}, "input.token"),
        ({"run_spec": own_spec(attempt_id="../x"), "token": "t"}, "attempt_id"),
        ({"run_spec": own_spec(gateway_url="file:///x"), "token": "t"}, "gateway_url"),
        ({"run_spec": own_spec(), "token": "t", "config": BRIEF_CONFIG}, "cannot stand beside"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_input_is_refused_by_the_name_of_its_member(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    failure = refusal(tmp_path, given)
    assert told in f"{failure.message} {failure.advice}"


def test_a_dataloader_cannot_name_a_folder_outside_the_dataset(tmp_path: Path) -> None:
    given = {"dataset_files": [PICTURE], "config": BRIEF_CONFIG, "dataloader": [{"instance_data_dir": "../.."}]}
    assert "no folder of the dataset" in refusal(tmp_path, given).message


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ("black-forest-labs/FLUX.1-dev", "flux"),
        ("black-forest-labs/FLUX.2-klein", "flux2"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("stabilityai/stable-diffusion-3.5-large", "sd3"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1x"),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "pixart_sigma"),
        ("Tongyi-MAI/Z-Image-Turbo", "z_image"),
        ("Qwen/Qwen-Image", "qwen_image"),
        ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "sana"),
    ],
)
def test_the_family_is_read_from_the_bases_name(base: str, family: str) -> None:
    assert family_of(base) == family


def test_the_family_of_a_folder_is_read_from_its_pipeline(tmp_path: Path) -> None:
    base = tmp_path / "flux-lookalike"
    base.mkdir()
    (base / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}), encoding="utf-8")
    assert family_of(str(base)) == "sana"


def test_every_family_that_is_built_can_be_read_from_a_name() -> None:
    assert family_entries().keys() <= {family_of(f"someone/{family}-base") for family in family_entries()}


def test_a_language_models_config_is_left_alone() -> None:
    config = {"model": "Qwen/Qwen2.5-7B", "training": {"method": "sft"}}
    assert completed_config(config) == config


def test_an_object_in_other_trainers_words_becomes_one_entry(tmp_path: Path) -> None:
    (entry,) = completed_dataloader({"num_repeats": 3, "instance_prompt": "a cat", "resolution": 512}, tmp_path)
    assert (entry["repeats"], entry["caption_strategy"], entry["resolution"]) == (2, "instanceprompt", 512)
    assert "num_repeats" not in entry


@pytest.mark.parametrize(
    ("seconds", "text"), [(8100, "2h 15m"), (250, "4m 10s"), (11.6, "12s"), (3599.7, "1h 0m"), (0, "0s")]
)
def test_time_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
