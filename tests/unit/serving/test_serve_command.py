"""`python -m trainer serve` in this process: every refusal says what to do, and nothing is left behind."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.ollama import OllamaSimulator
from tests.simulators.vllm import VllmSimulator
from tests.support.tiny_llm import LAYERS, WIDTH, write_adapter
from trainer.entry import serve
from trainer.entry.cli import main

KEY = "a-key-nobody-may-see"
Say = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def vllm() -> Iterator[VllmSimulator]:
    made = VllmSimulator(base_path="/srv/models/tiny", key=KEY)
    yield made
    made.close()


@pytest.fixture
def ollama() -> Iterator[OllamaSimulator]:
    made = OllamaSimulator()
    made.add_base("llama3.2:1b", "llama", width=WIDTH, layers=LAYERS)
    yield made
    made.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base="/models/tiny")


@pytest.fixture
def say(tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Exit code and lines, but for stages, of serving the adapter from the folder `served`."""

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        monkeypatch.setenv("SERVE_API_KEY", KEY)  # the command takes it out
        named = () if any(argument.startswith("--name") for argument in arguments) else ("--name=mine",)
        places = (f"--adapter={adapter}", f"--adapter-dir={tmp_path / 'served'}")
        code = main(["serve", *places, *named, *arguments])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return code, [line for line in lines if line["type"] != "stage"]

    return run


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({"allows_updates": False}, [], "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"),
        ({"base_path": "/srv/other"}, [], "was trained on /models/tiny, but vLLM serves base (/srv/other)"),
        ({"key": "another"}, [], "SERVE_API_KEY"),
        ({"engine_runs": False}, [], "engine has stopped"),
        ({}, ["--max-lora-rank=4"], "its rank 8 is above the server's limit of 4"),
        ({"max_lora_rank": 4}, [], "LoRA rank 8 is greater than max_lora_rank 4"),
        ({}, ["--name=base"], "base is the base that vLLM serves"),
        ({}, ["--name=a b"], "is no name for a served model"),
        ({}, ["--path-on-server=/mnt/x"], "--path-on-server"),
        ({}, ["--key-file=/nowhere/key"], "/nowhere/key cannot be read"),
        ({}, ["--adapter=/nowhere"], "/nowhere/adapter_config.json is not there"),
    ],
)
def test_each_refusal_says_what_to_do_and_leaves_no_copy(
    say: Say, vllm: VllmSimulator, tmp_path: Path, change: dict[str, Any], arguments: list[str], said: str
) -> None:
    for name, value in change.items():
        setattr(vllm, name, value)
    code, (failed,) = say(f"--vllm={vllm.url}", *arguments)
    assert code in {64, 65, 69}
    assert said in f"{failed['message']} {failed['advice']}"
    assert KEY not in json.dumps(failed)
    assert not list(tmp_path.glob("served/*"))


def test_a_replacement_that_is_refused_leaves_what_was_served(
    say: Say, vllm: VllmSimulator, tmp_path: Path, adapter: Path
) -> None:
    _, (served,) = say(f"--vllm={vllm.url}")
    write_adapter(adapter, base="/models/tiny", rank=32)
    code, (failed,) = say(f"--vllm={vllm.url}")
    assert (code, failed["type"]) == (64, "failed")
    assert [str(path) for path in (tmp_path / "served").iterdir()] == [served["path"]]
    assert vllm.adapters["mine"][0] == served["path"]


def test_every_replica_gets_it_under_its_own_path_of_the_shared_folder(
    say: Say, vllm: VllmSimulator, tmp_path: Path
) -> None:
    second = VllmSimulator(base_path="/mnt/tiny", key=KEY)
    (tmp_path / "theirs").symlink_to(tmp_path / "served")  # one disk under two names
    urls = (f"--vllm={vllm.url}", f"--vllm={second.url}")
    code, lines = say(*urls, f"--path-on-server={tmp_path / 'theirs'}")
    assert (code, [line["state"] for line in lines]) == (0, ["loaded", "loaded"])
    for server in (vllm, second):
        assert Path(server.adapters["mine"][0]).parent == tmp_path / "theirs"
    code, lines = say(*urls, "--remove")
    assert [line["was_there"] for line in lines] == [True, True]
    assert not list(tmp_path.glob("served/*"))
    second.close()


def test_another_name_for_the_same_base_is_taken_on_ones_word(say: Say, vllm: VllmSimulator) -> None:
    vllm.base_path = "/srv/other"
    assert say(f"--vllm={vllm.url}", "--any-base")[0] == 0


def test_a_watch_loads_it_again_after_a_restart_and_waits_for_a_server_that_is_away(
    say: Say, vllm: VllmSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def look(_pause_s: float) -> None:
        """Stands for the pause between two looks: what happens to the server meanwhile."""
        looks.append("mine" if "mine" in vllm.adapters else "lost")
        if len(looks) == 1:
            vllm.restart()
            vllm.engine_runs = False
        elif len(looks) == 2:
            vllm.engine_runs = True
        elif len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(serve.time, "sleep", look)
    with pytest.raises(KeyboardInterrupt):
        say(f"--vllm={vllm.url}", "--watch")
    assert looks == ["mine", "lost", "mine", "mine"]


def test_ollama_needs_the_bases_name_and_gets_a_modelfile(say: Say, ollama: OllamaSimulator, tmp_path: Path) -> None:
    code, (failed,) = say(f"--ollama={ollama.url}")
    assert code == 64
    assert "It has: llama3.2:1b" in failed["advice"]
    code, (served,) = say(f"--ollama={ollama.url}", "--from=llama3.2:1b")
    assert code == 0
    assert "FROM llama3.2:1b\nADAPTER .\n" in Path(served["modelfile"]).read_text(encoding="utf-8")
    code, (removed,) = say(f"--ollama={ollama.url}", "--remove")
    assert removed["was_there"] is True
    assert not list(tmp_path.glob("served/*"))
    assert "mine:latest" not in ollama.models
