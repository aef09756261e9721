"""What a submitted body must be, and which request is the same request."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from services.gateway.domain.config_secrets import is_secret_name
from services.gateway.domain.moments import parse_at
from services.gateway.domain.submission import (
    LoadedConfig,
    SubmitJobRequest,
    check_name,
    check_provider,
    check_source,
    idempotency_key,
    priority_number,
    request_digest,
    submit_command,
)
from shared.contracts.training import datasets, diffusion, llm, llm_keys
from shared.contracts.training.problems import ConfigRejected
from shared.problems import Rejected

CONFIG = {"--model_family": "flux", "--model_type": "lora", "--max_train_steps": 10}
LOADER = [{"id": "a", "type": "local", "dataset_type": "image", "instance_data_dir": "/data/a"}]


def field_of(error: pytest.ExceptionInfo[Rejected]) -> str:
    return error.value.fields["errors"][0]["field"]


@pytest.mark.parametrize("name", ["a", "my-training-config", "v1.2_final", "A" * 128])
def test_slug_is_a_config_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "../a", "a/b", "a\\b", "/a", "a b", "a\0", "ä", "A" * 129, "-a"]
)
def test_anything_else_is_not_a_config_name(name: str) -> None:
    with pytest.raises(Rejected) as error:
        check_name(name)
    assert field_of(error) == "config_name_to_load"


@pytest.mark.parametrize(("given", "number"), [(None, 10), ("low", 0), ("URGENT", 30), (40, 40), ("20", 20)])
def test_priority_word_or_number_becomes_the_number(given: int | str | None, number: int) -> None:
    assert priority_number(given) == number


@pytest.mark.parametrize("given", ["soon", 11, "11", -1, ""])
def test_priority_that_is_neither_is_refused(given: int | str) -> None:
    with pytest.raises(Rejected) as error:
        priority_number(given)
    assert field_of(error) == "priority"


def test_config_comes_from_exactly_one_place() -> None:
    check_source(SubmitJobRequest(config=CONFIG))
    check_source(SubmitJobRequest(config_name_to_load="a"))
    for body in (
        SubmitJobRequest(),
        SubmitJobRequest(config=CONFIG, config_name_to_load="a"),
        SubmitJobRequest(config_name_to_load="a", dataloader_config=LOADER),
    ):
        with pytest.raises(Rejected, match="validation_error"):
            check_source(body)


def test_unknown_provider_names_the_known_ones() -> None:
    with pytest.raises(Rejected) as error:
        check_provider("moon", ("local", "other"))
    assert error.value.code == "unknown_provider"
    assert "local, other" in error.value.detail


def test_digest_ignores_key_order_and_the_key_itself_and_nothing_else() -> None:
    one = SubmitJobRequest(config={"a": 1, "b": 2}, idempotency_key="x")
    two = SubmitJobRequest(config={"b": 2, "a": 1}, idempotency_key="y")
    assert request_digest(one, "local") == request_digest(two, "local")
    assert request_digest(one, "local") != request_digest(one, "replicate")
    other = SubmitJobRequest(config={"a": 1, "b": 3})
    assert request_digest(one, "local") != request_digest(other, "local")


def test_key_is_read_from_body_or_header_and_must_agree() -> None:
    assert idempotency_key(SubmitJobRequest(), None) is None
    assert idempotency_key(SubmitJobRequest(), "h") == "h"
    assert idempotency_key(SubmitJobRequest(idempotency_key="b"), "b") == "b"
    for body, header in (("b", "h"), ("", None), ("x" * 256, None), ("a\nb", None)):
        with pytest.raises(Rejected) as error:
            idempotency_key(SubmitJobRequest(idempotency_key=body), header)
        assert field_of(error) == "idempotency_key"


def test_command_carries_one_dataset_request_for_each_local_folder() -> None:
    loaded = LoadedConfig(name="saved", config={**CONFIG, "--tracker_run_name": "from config"}, dataloader=LOADER)
    job_id = uuid4()
    command = submit_command(SubmitJobRequest(), loaded, job_id=job_id, user_id="local", provider="local", key="k")
    assert [(dataset.dataset_id, dataset.path) for dataset in command.datasets] == [("a", "/data/a")]
    assert (command.config_name, command.tracker_run_name, command.idempotency_key) == ("saved", "from config", "k")
    assert command.config == loaded.config


def test_config_and_dataloader_problems_come_together() -> None:
    loaded = LoadedConfig(name=None, config={"--colour": 1}, dataloader=[])
    with pytest.raises(ConfigRejected) as error:
        submit_command(SubmitJobRequest(), loaded, job_id=uuid4(), user_id="local", provider="local", key=None)
    fields = [problem.field for problem in error.value.problems]
    assert "--colour" in fields
    assert "dataloader" in fields


def problems_with(config: dict[str, Any], entry: dict[str, Any]) -> list[tuple[str, str]]:
    loaded = LoadedConfig(name=None, config={**CONFIG, **config}, dataloader=[{**LOADER[0], **entry}])
    with pytest.raises(ConfigRejected) as error:
        submit_command(SubmitJobRequest(), loaded, job_id=uuid4(), user_id="local", provider="local", key=None)
    assert "hunter2" not in str(error.value)
    return [(problem.field, problem.code) for problem in error.value.problems]


@pytest.mark.parametrize(
    ("config", "entry", "field"),
    [
        ({"--hub_token": "hunter2"}, {}, "--hub_token"),
        ({"hub-token": "hunter2"}, {}, "hub-token"),
        ({"--webhook_config": {"url": "x", "auth": "hunter2"}}, {}, "--webhook_config.auth"),
        (
            {"--webhook_config": '{"headers": {"Authorization": "hunter2"}}'},
            {},
            "--webhook_config.headers.Authorization",
        ),
        ({"--publishing_config": [{"secret_key": "hunter2"}]}, {}, "--publishing_config[0].secret_key"),
        ({}, {"aws_secret_access_key": "hunter2"}, "dataloader[0].aws_secret_access_key"),
        ({}, {"huggingface": {"apiKey": "hunter2"}}, "dataloader[0].huggingface.apiKey"),
    ],
)
def test_secret_in_a_config_is_refused_by_name_and_never_repeated(
    config: dict[str, Any], entry: dict[str, Any], field: str
) -> None:
    assert (field, "secret_in_config") in problems_with(config, entry)


def test_nothing_under_a_secrets_name_is_no_secret() -> None:
    prompts = {"secret_garden": "a garden"}
    config: dict[str, Any] = {
        "--hub_token": None,
        "--webhook_config": {"auth": "", "token": "None", "password": {}, "use_auth_token": True},
        "--tokenizer_max_length": 77,
        "--user_prompt_library": prompts,
    }
    loaded = LoadedConfig(name=None, config={**CONFIG, **config}, dataloader=LOADER)
    assert submit_command(SubmitJobRequest(), loaded, job_id=uuid4(), user_id="u", provider="local", key=None)


def test_of_all_known_keys_only_the_token_has_a_secrets_name() -> None:
    assert [key for key in diffusion.KNOWN_KEYS if is_secret_name(key)] == ["hub_token"]
    assert not any(is_secret_name(key) for key in datasets.KNOWN_KEYS)
    own = {name for names in llm_keys.SECTIONS.values() for name in names}
    assert not any(is_secret_name(key) for key in own | llm.KNOWN_KEYS)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("17", 17),
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T10:00:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T12:00:00+02:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T12:00:00.5 02:00", datetime(2026, 11, 22, 10, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_at_is_a_position_or_a_time(text: str, moment: int | datetime) -> None:
    assert parse_at(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "1" * 30, "2026-13-01"])
def test_at_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(Rejected) as error:
        parse_at(text)
    assert field_of(error) == "at"
