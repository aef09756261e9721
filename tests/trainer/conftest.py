# pyright: basic
"""Trainer tests: real runs of tiny jobs. They need `.venv-trainer`; without torch nothing here is collected."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRAINER_BACKOFF_MIN_S="0.02", TRAINER_BACKOFF_MAX_S="0.2")

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]

# Our own modules are imported inside the fixtures: some need torch, and this file is read without it too.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.trainer)


@pytest.fixture
def receiver() -> Iterator[Any]:
    from receiver import Receiver  # noqa: PLC0415

    running = Receiver()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loaded NVIDIA driver library that says what a file says: whoever asks for the real one gets it by its name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
    ctypes.CDLL(str(library))
    return library


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty tinted digits with captions."""
    from trainer.demo_data import write_demo_data  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("digits")
    write_demo_data(folder, 20)
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tmp_path: Path, digits: Path, shared_cache: Path) -> Any:
    """A factory of attempts with a small, quick configuration."""
    from attempts import AttemptStarter  # noqa: PLC0415

    return AttemptStarter(tmp_path, digits, shared_cache)


@pytest.fixture(scope="session")
def dialogues() -> list[tuple[str, str]]:
    """Real questions and answers."""
    from tiny.dialogues import pairs  # noqa: PLC0415

    return pairs()


@pytest.fixture(scope="session")
def new_qwen(tmp_path_factory: pytest.TempPathFactory, dialogues: list[tuple[str, str]]) -> Path:
    """A tiny Qwen2 with random weights."""
    from tiny.qwen2 import build_qwen2  # noqa: PLC0415

    texts = [f"{question} {answer}" for question, answer in dialogues]
    return build_qwen2(tmp_path_factory.mktemp("models") / "new-qwen", texts)


@pytest.fixture(scope="session")
def dialogue_file(tmp_path_factory: pytest.TempPathFactory, dialogues: list[tuple[str, str]]) -> Path:
    """All of them as chat rows, in a folder of their own."""
    from tiny.dialogues import chat, write_jsonl  # noqa: PLC0415

    return write_jsonl(tmp_path_factory.mktemp("rows") / "chat.jsonl", [chat(*pair) for pair in dialogues])


@pytest.fixture(scope="session")
def taught_qwen(tmp_path_factory: pytest.TempPathFactory, new_qwen: Path, dialogue_file: Path) -> Any:
    """The attempt that trained the tiny Qwen2 whole on every dialogue; its output is a base that knows their words."""
    from llm_runs import LlmAttempts  # noqa: PLC0415

    start = LlmAttempts(tmp_path_factory.mktemp("taught"), new_qwen, dialogue_file)
    attempt = start(
        "taught", use_lora=False, max_steps=200, learning_rate=6e-3, batch_size=16, warmup_steps=10,
        lr_scheduler="cosine", completion_only_loss=False, save_steps=1000,
    )  # fmt: skip
    assert attempt.run() == 0
    return attempt


@pytest.fixture
def start_llm(tmp_path: Path, taught_qwen: Any, dialogue_file: Path) -> Any:
    """A factory of attempts on the taught model."""
    from llm_runs import LlmAttempts  # noqa: PLC0415

    return LlmAttempts(tmp_path, taught_qwen.work_dir / "output", dialogue_file)
