"""Ollama: what our glue asks of it, against a simulator that the public client finds to be one (tests/vendors)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.ollama import OllamaSimulator
from tests.support.tiny_llm import LAYERS, WIDTH, write_adapter
from trainer.failures import AttemptFailed
from trainer.serve.adapter import Adapter, read_adapter
from trainer.serve.modelfile import write_modelfile
from trainer.serve.ollama import Ollama, register


@pytest.fixture
def ollama() -> Iterator[OllamaSimulator]:
    made = OllamaSimulator()
    made.add_base("llama3.2:1b", "llama", width=WIDTH, layers=LAYERS)
    made.add_base("qwen", "qwen2", width=WIDTH, layers=LAYERS)
    made.add_base("llama3:70b", "llama", width=WIDTH * 2, layers=LAYERS)
    made.add_base("shallow", "llama", width=WIDTH, layers=LAYERS - 1)
    yield made
    made.close()


@pytest.fixture
def client(ollama: OllamaSimulator) -> Iterator[Ollama]:
    made = Ollama(ollama.url)
    yield made
    made.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return read_adapter(write_adapter(tmp_path / "adapter", base="meta-llama/Llama-3.2-1B"))


def quiet(_text: str) -> None:
    """Nobody watches."""


def refusal(client: Ollama, adapter: Adapter, *, base: str = "llama3.2:1b", name: str = "mine") -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        register(client, adapter, name, base, quiet)
    return caught.value


def test_an_adapter_becomes_a_model_of_its_base(client: Ollama, ollama: OllamaSimulator, adapter: Adapter) -> None:
    said: list[str] = []
    register(client, adapter, "mine", "llama3.2:1b", said.append)
    made = ollama.models["mine:latest"]
    assert made["parent"] == "llama3.2:1b"
    assert made["adapters"] == {name: f"sha256:{digest}" for name, digest in adapter.digests.items()}
    assert all(ollama.blobs[digest] for digest in made["adapters"].values())
    assert said[-1] == "success"


def test_files_that_are_there_are_not_sent_again(client: Ollama, ollama: OllamaSimulator, adapter: Adapter) -> None:
    for _ in range(2):
        register(client, adapter, "mine", "llama3.2:1b", quiet)
    sent = [path for method, path in ollama.asked if method == "POST" and path.startswith("/api/blobs/")]
    assert len(sent) == len(adapter.digests)


def test_an_error_inside_a_stream_of_status_200_is_a_failure(
    client: Ollama, ollama: OllamaSimulator, adapter: Adapter
) -> None:
    ollama.breaks_with = "tensor 'blk.0.attn_q' is odd"
    refused = refusal(client, adapter)
    assert "tensor 'blk.0.attn_q' is odd" in refused.message
    assert "mine:latest" not in ollama.models


def test_a_stream_that_ends_before_success_is_a_failure(
    client: Ollama, ollama: OllamaSimulator, adapter: Adapter
) -> None:
    ollama.falls_silent = True
    assert "without success" in refusal(client, adapter).message


def test_an_architecture_that_is_not_converted_is_refused_with_the_way_by_gguf(
    client: Ollama, ollama: OllamaSimulator, adapter: Adapter
) -> None:
    refused = refusal(client, adapter, base="qwen")
    assert "Llama and Mistral" in refused.message
    assert "qwen2" in refused.message
    assert "convert_lora_to_gguf.py" in refused.advice
    assert "merge" in refused.advice
    assert not any(path == "/api/create" for _, path in ollama.asked)


def test_a_gguf_adapter_is_registered_whatever_the_architecture(
    client: Ollama, ollama: OllamaSimulator, adapter: Adapter, tmp_path: Path
) -> None:
    gguf = tmp_path / "adapter.gguf"
    gguf.write_bytes(b"GGUF and the rest")
    register(client, adapter, "mine", "qwen", quiet, gguf=gguf)
    assert list(ollama.models["mine:latest"]["adapters"]) == ["adapter.gguf"]
    gguf.write_bytes(b"something else")
    with pytest.raises(AttemptFailed, match="no GGUF file"):
        register(client, adapter, "mine", "qwen", quiet, gguf=gguf)


def test_a_base_that_is_not_there_is_not_pulled_but_named(
    client: Ollama, ollama: OllamaSimulator, adapter: Adapter
) -> None:
    refused = refusal(client, adapter, base="llama3.2:3b")
    assert "ollama pull llama3.2:3b" in refused.advice
    assert "llama3.2:1b" in refused.advice
    assert not any(path == "/api/create" for _, path in ollama.asked)


@pytest.mark.parametrize("base", ["llama3:70b", "shallow"])
def test_a_base_of_other_sizes_is_not_the_one_that_was_trained_on(client: Ollama, adapter: Adapter, base: str) -> None:
    refused = refusal(client, adapter, base=base)
    assert "is not what this adapter was trained on (meta-llama/Llama-3.2-1B)" in refused.message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "use_rslora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"extra_shapes": {"base_model.model.lm_head.lora_A.weight": (8, WIDTH)}}, "lm_head"),
    ],
)
def test_what_conversion_would_drop_is_refused(
    client: Ollama, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    odd = read_adapter(write_adapter(tmp_path / "odd", base="x", **config))
    refused = refusal(client, odd)
    assert reason in refused.message
    assert "convert_lora_to_gguf.py" in refused.advice


def test_a_model_of_somebody_else_is_not_replaced(client: Ollama, adapter: Adapter) -> None:
    assert "was not made from llama3.2:1b" in refusal(client, adapter, name="qwen").message
    assert "is the base itself" in refusal(client, adapter, name="llama3.2:1b").message


def test_removing_is_harmless_when_there_is_nothing(client: Ollama, adapter: Adapter) -> None:
    register(client, adapter, "mine", "llama3.2:1b", quiet)
    assert [client.delete("mine"), client.delete("mine")] == [True, False]


def test_the_modelfile_names_base_and_adapter(tmp_path: Path) -> None:
    lines = write_modelfile(tmp_path, "llama3.2:1b", "mine").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["FROM llama3.2:1b", "ADAPTER ."]
