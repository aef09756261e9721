"""Where results may go, as a config says it: SimpleTuner's keys, no secrets, no way to where nobody may be sent."""

from typing import Any

import pytest

from shared.contracts.training.delivery import (
    DELIVERY_KEYS,
    BucketTarget,
    DeliverySpec,
    FolderTarget,
    check_delivery,
)
from shared.contracts.training.diffusion import check_diffusion
from shared.contracts.training.endpoints import endpoint_problem
from shared.contracts.training.problems import FieldProblem


def checked(family: str | None = "flux", *, plain_lora: bool = True, **config: Any) -> DeliverySpec:
    problems: list[FieldProblem] = []
    spec = check_delivery(config, family=family, plain_lora=plain_lora, problems=problems)
    assert problems == []
    return spec


def refused(family: str | None = "flux", *, plain_lora: bool = True, **config: Any) -> list[tuple[str, str]]:
    problems: list[FieldProblem] = []
    check_delivery(config, family=family, plain_lora=plain_lora, problems=problems)
    assert all(each.message and each.advice for each in problems)
    return [(each.field, each.code) for each in problems]


def bucket(**members: Any) -> dict[str, Any]:
    return {"publishing_config": [{"provider": "s3", "bucket": "models", **members}]}


def test_without_keys_results_go_to_the_control_plane_alone() -> None:
    assert checked(max_train_steps=3) == DeliverySpec()


def test_the_hub_keys_are_read_in_any_spelling() -> None:
    config: dict[str, Any] = {"--push-to-hub": "true", "--hub_model_id": "ann/digits", "model_card_private": "false"}
    spec = checked(**config)
    assert (spec.push_to_hub, spec.hub_model_id, spec.model_card_private) == (True, "ann/digits", False)


def test_a_repository_is_private_unless_the_config_says_otherwise() -> None:
    assert checked(push_to_hub=True, hub_model_id="digits").model_card_private is True


def test_a_push_without_a_repository_takes_the_name_of_the_output_folder_or_is_refused() -> None:
    config: dict[str, Any] = {"push_to_hub": True, "--output_dir": "/outputs/flux-lora"}
    assert checked(**config).hub_model_id == "flux-lora"
    assert refused(push_to_hub=True) == [("hub_model_id", "missing")]
    assert checked(push_to_hub=False).hub_model_id is None


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a//b", "-a", "a b", "a--b", "https://hub/x", "a/b.git", "é/x"])
def test_a_name_that_is_no_repository_is_refused(name: str) -> None:
    assert refused(push_to_hub=True, hub_model_id=name) == [("hub_model_id", "wrong_type")]


@pytest.mark.parametrize("given", [[{"provider": "s3", "bucket": "models"}], {"provider": "s3", "bucket": "models"},
                                   '[{"provider": "s3", "bucket": "models"}]'])  # fmt: skip
def test_a_target_is_given_alone_in_a_list_or_as_json(given: Any) -> None:
    assert checked(publishing_config=given).publishing_config == [BucketTarget(provider="s3", bucket="models")]


@pytest.mark.parametrize("given", [None, "", "None", False, [], "false"])
def test_nothing_given_is_no_target(given: Any) -> None:
    assert checked(publishing_config=given).publishing_config == []


def test_every_member_of_a_bucket_is_read() -> None:
    members = {"region": "eu-west-1", "endpoint_url": "https://s3.example.org/", "base_path": "/team/digits/"}
    [target] = checked(**bucket(**members, public_base_url="https://cdn.example.org/")).publishing_config
    assert target == BucketTarget(
        provider="s3", bucket="models", prefix="team/digits", region="eu-west-1",
        endpoint_url="https://s3.example.org", public_base_url="https://cdn.example.org",
    )  # fmt: skip


def test_backblaze_has_its_endpoint_from_the_region_and_a_host_without_scheme_is_https() -> None:
    config: dict[str, Any] = {
        "publishing_config": [{"provider": "backblaze_b2", "bucket": "models", "region": "us-west-004"}]
    }
    [target] = checked(**config).publishing_config
    assert isinstance(target, BucketTarget)
    assert target.endpoint_url == "https://s3.us-west-004.backblazeb2.com"
    [target] = checked(**bucket(endpoint_url="minio.example.org:9000")).publishing_config
    assert isinstance(target, BucketTarget)
    assert target.endpoint_url == "https://minio.example.org:9000"


@pytest.mark.parametrize("name", ["access_key", "secret_key"])
def test_a_credential_in_the_config_is_refused_and_not_repeated(name: str) -> None:
    problems: list[FieldProblem] = []
    check_delivery(bucket(**{name: "AKIAxxxxSECRET"}), family="flux", problems=problems)
    assert [(each.field, each.code) for each in problems] == [(f"publishing_config[0].{name}", "secret_in_config")]
    assert "AKIA" not in str(problems)
    assert checked(**bucket(**{name: ""})).publishing_config


@pytest.mark.parametrize("provider", ["azure_blob", "dropbox", "gcs", "ftp", ""])
def test_a_target_that_is_not_built_is_refused_with_the_nearest_that_is(provider: str) -> None:
    config: dict[str, Any] = {"publishing_config": [{"provider": provider, "bucket": "models"}]}
    assert refused(**config) == [("publishing_config[0].provider", "unsupported")]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("s3", ""),
        ({"provider": "s3"}, ".bucket"),
        ({"provider": "s3", "bucket": "Models!"}, ".bucket"),
        ({"provider": "r2", "bucket": "models"}, ".endpoint_url"),
        ({"provider": "s3", "bucket": "models", "base_path": "a/../b"}, ".base_path"),
        ({"provider": "s3", "bucket": "models", "colour": 1}, ".colour"),
        ({"provider": "s3", "bucket": "models", "region": "a b"}, ".region"),
        ({"provider": "local"}, ".name"),
        ({"provider": "local", "path": "/etc"}, ".name"),
        ({"provider": "local", "name": "../up"}, ".name"),
        ({"provider": "local", "name": "a\x00b"}, ".name"),
    ],
)
def test_a_wrong_target_is_refused_at_its_place(entry: Any, field: str) -> None:
    assert [place for place, _ in refused(publishing_config=[entry])] == [f"publishing_config[0]{field}"]


def test_a_file_name_in_place_of_the_list_is_refused() -> None:
    assert refused(publishing_config="config/publishing.json") == [("publishing_config", "wrong_type")]


def test_a_folder_is_a_name() -> None:
    spec = checked(publishing_config=[{"provider": "local", "name": "team/digits"}])
    assert spec.publishing_config == [FolderTarget(name="team/digits")]


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.example.org", "https://10.0.0.5:9000", "http://127.0.0.1:9000", "http://localhost:9000",
        "http://[::1]:9000", "https://[2001:db8::1]/storage/v1/s3",
    ],
)  # fmt: skip
def test_an_endpoint_that_may_be_used(url: str) -> None:
    assert endpoint_problem(url) is None
    assert checked(**bucket(endpoint_url=url)).publishing_config


@pytest.mark.parametrize(
    "url",
    [
        "http://s3.example.org", "http://10.0.0.5:9000", "ftp://s3.example.org", "file:///etc/passwd", "https:///x",
        "https://key:secret@s3.example.org", "https://@s3.example.org", "https://s3.example.org?x=1",
        "https://s3.example.org#x", "https://169.254.169.254", "http://169.254.169.254/latest", "https://[fe80::1]",
        "https://[::ffff:169.254.169.254]", "https://2852039166", "https://0xa9fea9fe", "https://0251.0376.0251.0376",
        "https://[64:ff9b::a9fe:a9fe]", "https://[2002:a9fe:a9fe::1]", "https://[fd00:ec2::254]", "https://0.0.0.0",
        "https://metadata.google.internal", "https://METADATA.google.internal.", "https://100.100.100.200",
        "https://224.0.0.1", "https://s3.example.org:99999", "https://[::1", "http://0x7f.1.evil.org",
    ],
)  # fmt: skip
def test_an_endpoint_that_may_not_be_used_is_refused_without_being_shown(url: str) -> None:
    assert endpoint_problem(url) is not None
    problems: list[FieldProblem] = []
    check_delivery(bucket(endpoint_url=url), family="flux", problems=problems)
    assert [each.field for each in problems] == ["publishing_config[0].endpoint_url"]
    assert "secret" not in problems[0].message


@pytest.mark.parametrize("word", ["comfyui", "ComfyUI", "kohya"])
@pytest.mark.parametrize("family", ["flux", "sd1x", "sdxl"])
def test_the_kohya_format_is_written_where_its_layout_is_known(word: str, family: str) -> None:
    assert checked(family, lora_format=word).lora_format == "kohya"


@pytest.mark.parametrize("family", ["z_image", "pixart_sigma", None])
def test_a_family_without_a_kohya_layout_refuses_the_format(family: str | None) -> None:
    assert refused(family, lora_format="comfyui") == [("lora_format", "unsupported")]
    assert checked(family, lora_format="diffusers").lora_format == "diffusers"


def test_dora_and_unknown_formats_are_refused() -> None:
    assert refused(plain_lora=False, lora_format="kohya") == [("lora_format", "unsupported")]
    assert refused(lora_format="onnx") == [("lora_format", "unsupported")]
    assert refused(lora_format=["kohya"]) == [("lora_format", "unsupported")]


@pytest.mark.parametrize("name", sorted(DELIVERY_KEYS - {"publishing_config"}))
def test_a_list_is_no_value_of_any_switch(name: str) -> None:
    config: dict[str, Any] = {name: [1, {}]}
    assert [place for place, _ in refused(**config)] == [name]


def test_a_diffusion_config_carries_its_delivery_and_names_a_key_given_twice() -> None:
    config: dict[str, Any] = {
        "model_family": "flux",
        "model_type": "lora",
        "push_to_hub": True,
        "hub_model_id": "ann/digits",
    }
    spec = check_diffusion({**config, "lora_format": "comfyui"})
    assert (spec.delivery.hub_model_id, spec.delivery.lora_format) == ("ann/digits", "kohya")
    assert spec.ignored_keys == []
    with pytest.raises(Exception, match="push_to_hub is given twice"):
        check_diffusion({**config, "--push-to-hub": False})
