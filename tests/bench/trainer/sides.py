"""Running one side of a comparison: a process of its own, timed by its own clock (`child/clock.py`)."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.bench.report import ROOT

WARMUP_STEPS = 10
_TAIL_LINES = 15


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the clock wrote. Bytes are the process' peak: with the libraries alone, until the last step, and in all."""

    steps: int
    timed_steps: int
    cpu_s: float
    wall_s: float
    imports_bytes: int
    trained_bytes: int
    peak_bytes: int
    cuda_bytes: int | None
    whole_cpu_s: float
    threads: int


class BrokenSideError(Exception):
    """A side did not come to its end."""


@dataclass(frozen=True)
class Place:
    """Where a run happens, and with what."""

    python: Path
    home: Path
    """Data and models, as `child/prepare.py` makes them."""
    device: str
    steps: int

    def speed(self, measured: Measured) -> float:
        """Optimizer steps per second of the processor, or of the clock on the wall where a GPU works."""
        return measured.timed_steps / (measured.cpu_s if self.device == "cpu" else measured.wall_s)

    def memory_bytes(self, measured: Measured) -> int:
        """The peak of the process, or of the GPU."""
        return measured.peak_bytes if self.device == "cpu" else measured.cuda_bytes or 0

    def run(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """What a module of `child` prints. Raises BrokenSideError with the end of its log."""
        command = [str(self.python), "-m", f"tests.bench.trainer.child.{module}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **self._environment(), **(env or {})},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join(done.stderr.splitlines()[-_TAIL_LINES:])
            raise BrokenSideError(f"{module} ended with {done.returncode}:\n{tail}")
        return done.stdout

    def timed(self, report: Path, module: str, *arguments: str) -> Measured:
        """Run a side from its start to its end and read its clock."""
        clock = {
            "BENCH_REPORT": str(report),
            "BENCH_WARMUP": str(WARMUP_STEPS),
            "BENCH_STEPS": str(self.steps),
        }
        self.run(module, *arguments, env=clock)
        measured = msgspec.json.decode(report.read_bytes(), type=Measured)
        if measured.steps != self.steps:
            raise BrokenSideError(f"{module} made {measured.steps} steps instead of {self.steps}")
        return measured

    def _environment(self) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {
            **hidden,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.home / "datasets-cache"),
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
