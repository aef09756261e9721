# pyright: basic
"""One stopwatch for all sides: every optimizer step of a process is seen, whoever's loop makes it.

A global hook of torch runs after each `optimizer.step()`. The time runs from the end of step `warmup` to the end of
step `last`, so loading, caching, the first steps and saving are outside on every side. Written as JSON when the process
ends. Nothing here synchronises a GPU between the two marks.
"""

import atexit
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_BYTES_PER_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_bytes() -> int:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_RSS_UNIT


class Clock:
    """Takes the time between two optimizer steps and the memory at three moments."""

    def __init__(self, report: Path, warmup: int, last: int) -> None:
        self._report, self._warmup, self._last = report, warmup, last
        self._steps = 0
        self._marks: list[tuple[float, float]] = []
        self._facts: dict[str, Any] = {}

    def start(self) -> None:
        """Watch from now on, and write the report at exit."""
        register_optimizer_step_post_hook(lambda *_: self._stepped())
        atexit.register(self._write)

    def imported(self) -> None:
        """The libraries are there, and nothing else yet."""
        self._facts["imports_bytes"] = peak_bytes()

    def _stepped(self) -> None:
        self._steps += 1
        if self._steps in {self._warmup, self._last}:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._marks.append((time.perf_counter(), time.process_time()))
        if self._steps == self._last:
            self._facts["trained_bytes"] = peak_bytes()

    def _write(self) -> None:
        if len(self._marks) > 1:
            (wall_begun, cpu_begun), (wall_ended, cpu_ended) = self._marks
            self._facts.update(wall_s=wall_ended - wall_begun, cpu_s=cpu_ended - cpu_begun)
        cuda_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        self._facts.update(
            steps=self._steps, timed_steps=self._last - self._warmup, peak_bytes=peak_bytes(), cuda_bytes=cuda_bytes,
            whole_cpu_s=time.process_time(), threads=torch.get_num_threads(),
        )  # fmt: skip
        self._report.write_text(json.dumps(self._facts), encoding="utf-8")


def clock_from_environment() -> Clock:
    """The clock that the harness asked for: BENCH_REPORT, BENCH_WARMUP, BENCH_STEPS."""
    return Clock(Path(os.environ["BENCH_REPORT"]), int(os.environ["BENCH_WARMUP"]), int(os.environ["BENCH_STEPS"]))
