"""What our glue relies on in vLLM, held by the simulator always and by the real server in `just serve-real`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tests.simulators.vllm import VllmSimulator
from tests.support.real_vllm import KEY, RealVllm
from tests.support.tiny_llm import write_adapter, write_tiny_llm
from trainer.failures import AttemptFailed
from trainer.serve.adapter import placed, read_adapter
from trainer.serve.vllm import Vllm, check_adapter, register

PROMPT = "the quick brown fox jumps over the lazy dog and goes home to sleep for a hundred years "
IN_PERSON = pytest.param("real", marks=[pytest.mark.slow, pytest.mark.timeout(900)])
"""Joins when REAL_VLLM is set, as `just serve-real` does."""
REFUSED: dict[str, dict[str, Any]] = {
    "LoRA rank 32 is greater than max_lora_rank 16": {"rank": 32},
    "does not yet support DoRA": {"use_dora": True},
    "only supports modules_to_save": {"modules_to_save": ["lm_head"]},
    "Adapter bias is not supported": {"bias": "all"},
    "expected target modules in": {
        "extra_shapes": {
            "base_model.model.model.layers.0.mlp.odd_proj.lora_A.weight": (8, 128),
            "base_model.model.model.layers.0.mlp.odd_proj.lora_B.weight": (128, 8),
        }
    },
}


class Target(Protocol):
    """A vLLM that serves `base_path` as `base`, with ranks up to 16."""

    url: str
    key: str
    base_path: str


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(scope="module")
def simulator(base: Path) -> Iterator[VllmSimulator]:
    made = VllmSimulator(base_path=str(base), key=KEY)
    yield made
    made.close()


@pytest.fixture(scope="module")
def real(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    made = RealVllm(base, tmp_path_factory.mktemp("vllm"))
    try:
        made.await_ready()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module", params=["simulator", *([IN_PERSON] if os.environ.get("REAL_VLLM") else [])])
def target(request: pytest.FixtureRequest) -> Target:
    return request.getfixturevalue(str(request.param))


@pytest.fixture
def http(target: Target) -> Iterator[httpx.Client]:
    """The server, without an adapter of another test."""
    headers = {"Authorization": f"Bearer {target.key}"}
    with httpx.Client(base_url=target.url, headers=headers, timeout=120, trust_env=False) as client:
        for card in client.get("/v1/models").json()["data"]:
            if card["parent"] is not None:
                client.post("/v1/unload_lora_adapter", json={"lora_name": card["id"]})
        yield client


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> dict[str, Path]:
    return {name: write_adapter(tmp_path / name, base=str(base), seed=at) for at, name in enumerate(("one", "two"), 1)}


def load(http: httpx.Client, name: str, path: Path | str, **more: Any) -> httpx.Response:
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


def card_of(http: httpx.Client, name: str) -> dict[str, Any] | None:
    return next((card for card in http.get("/v1/models").json()["data"] if card["id"] == name), None)


def answer(http: httpx.Client, model: str) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    return http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return response.status_code, error["type"], error["message"]


def test_a_loaded_adapter_is_listed_with_its_path_and_its_base(http: httpx.Client, adapters: dict[str, Path]) -> None:
    loaded = load(http, "mine", adapters["one"])
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
    card = card_of(http, "mine")
    assert card is not None
    assert (card["root"], card["parent"]) == (str(adapters["one"]), "base")


def test_a_name_is_taken_once_unless_in_place(http: httpx.Client, adapters: dict[str, Path]) -> None:
    load(http, "mine", adapters["one"])
    status, type_, message = error_of(load(http, "mine", adapters["two"]))
    assert (status, type_) == (400, "InvalidUserInput")
    assert "already been loaded" in message
    assert load(http, "mine", adapters["two"], load_inplace=True).status_code == 200


def test_other_weights_from_another_path_answer_for_themselves(http: httpx.Client, adapters: dict[str, Path]) -> None:
    load(http, "fresh", adapters["two"])
    load(http, "mine", adapters["one"])
    assert answer(http, "mine") != answer(http, "fresh")
    load(http, "mine", adapters["two"], load_inplace=True)
    assert answer(http, "mine") == answer(http, "fresh")


def test_other_weights_under_the_same_path_are_mixed_with_what_is_remembered(
    http: httpx.Client, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters["one"], tmp_path / "changing")
    load(http, "mine", folder)
    before = answer(http, "mine")
    shutil.copy(adapters["two"] / "adapter_model.safetensors", folder)
    load(http, "mine", folder, load_inplace=True)
    load(http, "fresh", adapters["two"])
    assert answer(http, "mine") not in {before, answer(http, "fresh")}


def test_the_base_name_is_refused(http: httpx.Client, adapters: dict[str, Path]) -> None:
    status, type_, message = error_of(load(http, "base", adapters["one"]))
    assert (status, type_) == (400, "InvalidUserInput")
    assert "conflicts with a served base model" in message


def test_a_path_that_is_not_there_is_not_found(http: httpx.Client) -> None:
    status, type_, message = error_of(load(http, "mine", "/nowhere/at/all"))
    assert (status, type_) == (404, "NotFoundError")
    assert "No adapter found" in message


@pytest.mark.parametrize("said", REFUSED)
def test_what_the_engine_refuses_is_a_500_and_changes_nothing(
    http: httpx.Client, adapters: dict[str, Path], base: Path, tmp_path: Path, said: str
) -> None:
    load(http, "mine", adapters["one"])
    before = answer(http, "mine")
    bad = write_adapter(tmp_path / "bad", base=str(base), **REFUSED[said])
    status, type_, message = error_of(load(http, "mine", bad, load_inplace=True))
    assert (status, type_) == (500, "InternalServerError")
    assert said in message
    card = card_of(http, "mine")
    assert card is not None
    assert card["root"] == str(adapters["one"])
    assert answer(http, "mine") == before
    assert http.get("/health").is_success


@pytest.mark.parametrize("said", [said for said in REFUSED if not said.startswith("expected target")])
def test_our_check_refuses_before_what_the_engine_would(base: Path, tmp_path: Path, said: str) -> None:
    """But for the names of modules: which there are is known to the server alone."""
    bad = read_adapter(write_adapter(tmp_path / "bad", base=str(base), **REFUSED[said]))
    with pytest.raises(AttemptFailed, match="vLLM does not take this adapter"):
        check_adapter(bad, max_rank=16)


def test_an_alpha_of_its_own_for_some_layers_is_taken(http: httpx.Client, base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "alphas", base=str(base), rank=8, alpha_pattern={"q_proj": 4})
    check_adapter(read_adapter(folder), max_rank=16)
    assert load(http, "mine", folder).status_code == 200


def test_unloading_is_not_found_the_second_time(http: httpx.Client, adapters: dict[str, Path]) -> None:
    load(http, "mine", adapters["one"])
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
    status, type_, _ = error_of(http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}))
    assert (status, type_) == (404, "NotFoundError")
    refused = http.post("/v1/completions", json={"model": "mine", "prompt": "x", "max_tokens": 1})
    assert error_of(refused)[:2] == (404, "NotFoundError")


def test_the_key_guards_v1_alone(target: Target) -> None:
    for path, status in {"/v1/models": 401, "/health": 200, "/version": 200}.items():
        assert httpx.get(f"{target.url}{path}", trust_env=False).status_code == status
    closed = httpx.get(f"{target.url}/v1/models", headers={"Authorization": "Bearer wrong"}, trust_env=False)
    assert closed.json() == {"error": "Unauthorized"}


def test_a_route_that_is_not_there_answers_unlike_an_adapter_that_is_not_there(http: httpx.Client) -> None:
    answered = http.post("/v1/no_such_route", json={})
    assert (answered.status_code, answered.json()) == (404, {"detail": "Not Found"})


def test_only_json_is_read(http: httpx.Client) -> None:
    plain = http.post("/v1/load_lora_adapter", content=b"x=1", headers={"Content-Type": "text/plain"})
    assert error_of(plain)[0] == 400
    assert error_of(http.post("/v1/load_lora_adapter", json={"lora_name": "x"}))[0] == 400


def test_our_glue_loads_finds_replaces_and_removes(
    http: httpx.Client, target: Target, adapters: dict[str, Path], tmp_path: Path
) -> None:
    server = Vllm(f"{target.url}/v1", target.key)
    one, two = (read_adapter(adapters[name]) for name in ("one", "two"))
    states: list[str] = []
    for adapter in (one, one, two, two):
        with placed(adapter, tmp_path / "served", "mine") as folder:
            told = register(server, adapter, "mine", str(folder), any_base=False)
        states.append(told["state"])
    assert states == ["loaded", "already loaded", "replaced", "already loaded"]
    load(http, "fresh", adapters["two"])
    assert answer(http, "mine") == answer(http, "fresh")
    assert [server.unload("mine"), server.unload("mine")] == [True, False]
    server.close()
