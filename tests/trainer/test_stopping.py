# pyright: basic
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.run import ExitCode
from trainer.entry.cli import main


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """`main` takes the signals over for the life of a process; this process goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def endless(start: Any, *more: str) -> tuple[Any, list[str]]:
    attempt = start(max_train_steps=100_000, checkpointing_steps=50_000)
    options = attempt.options
    words = ["run", "--offline", "--device", "cpu", "--spec", str(options.spec_path)]
    words += ["--work-dir", str(options.work_dir), "--cache-dir", str(options.cache_dir)]
    return attempt, [*words, *more]


def saved_steps(work_dir: Path) -> list[int]:
    return [int(folder.name.rpartition("-")[2]) for folder in (work_dir / "checkpoints").glob("checkpoint-*")]


def test_a_parent_that_is_gone_stops_the_run_which_saves_first(start: Any) -> None:
    attempt, words = endless(start, "--stop-with-parent")
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    closer = threading.Thread(target=lambda: (attempt.wait_for_step(2), os.close(writing)))
    closer.start()
    try:
        assert main(words) == ExitCode.PREEMPTED
    finally:
        closer.join()
        os.dup2(before, 0)
        for descriptor in (before, reading):
            os.close(descriptor)
    (step,) = saved_steps(attempt.work_dir)
    assert step >= 2
    assert attempt.data("failed")[0]["kind"] == "preempted"
