"""What a provider is told while a trainer runs, and what it is handed at the end; the same facts for every provider."""

import json
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.contracts.run import ReportLine

LOG_NAME = "logs.txt"
LORA_NAME = "pytorch_lora_weights.safetensors"
"""A LoRA that is a model by itself: diffusers' form."""
_METRICS = ("step", "total_steps", "epoch", "loss", "lr", "eta_s", "memory_bytes")
_LINES_SHOWN = frozenset({"log", "warning", "phase", "failed"})


@dataclass
class Story:
    """What the report lines have told so far."""

    started_s: float = field(default_factory=time.monotonic)
    phase: str = "preparing"
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    done: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    checkpoint_step: int | None = None
    log: list[str] = field(default_factory=list[str])

    def take(self, line: ReportLine) -> None:
        """Learn from one report line."""
        if line.type == "phase":
            self.phase = str(line.data.get("phase"))
        elif line.type == "metrics":
            self.metrics = {name: line.data[name] for name in _METRICS if name in line.data}
        elif line.type == "checkpoint":
            self.checkpoint_step = line.data.get("step")
        elif line.type == "done":
            self.done = line.data
        elif line.type == "failed":
            self.failed = line.data
        if line.type in _LINES_SHOWN:
            self.log.append(f"{line.ts.isoformat()} {shown(line)}")

    def progress(self) -> dict[str, Any]:
        """The state now, as one small object."""
        step, total = self.metrics.get("step"), self.metrics.get("total_steps")
        percent = {"percent": round(100 * step / total, 1)} if step and total else {}
        return {"phase": self.phase, **percent, **self.metrics, "elapsed_time": self.elapsed_time}

    @property
    def elapsed_time(self) -> str:
        """Time since the start, as people say it: `2h 15m`, `4m 10s`, `12s`."""
        return spoken(time.monotonic() - self.started_s)

    def final_metrics(self) -> dict[str, Any]:
        """Loss and time of a finished run."""
        done = self.done or {}
        return {
            "loss": done.get("final_loss", self.metrics.get("loss")),
            "steps": done.get("steps", self.metrics.get("step")),
            "elapsed_time": self.elapsed_time,
        }


def say(line: ReportLine) -> None:
    """Print one report line for a provider's log: metrics as compact JSON, the rest for people."""
    if line.type == "metrics":
        sys.stdout.write(json.dumps({"type": line.type, **line.data}, separators=(",", ":")) + "\n")
    elif line.type in _LINES_SHOWN:
        sys.stdout.write(shown(line) + "\n")
    sys.stdout.flush()


def shown(line: ReportLine) -> str:
    """One report line for a log that people read."""
    data = line.data
    if line.type == "log":
        return f"[{data.get('level')}] {data.get('message')}"
    if line.type == "phase":
        return f"[phase] {data.get('phase')}{' ' + str(data['detail']) if data.get('detail') else ''}"
    return f"[{line.type}] {data.get('code') or data.get('kind')}: {data.get('message')} {data.get('advice') or ''}"


def spoken(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


@dataclass(frozen=True)
class Outputs:
    """The files of a finished run: `model` is the result itself, packed into one tar if it is more than one file."""

    model: Path
    files: list[Path]
    log: Path

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(path.stat().st_size for path in self.files)


def write_log(story: Story, work_dir: Path) -> Path:
    """Everything that was told, as a text file; secrets were taken out before it came here."""
    path = work_dir / LOG_NAME
    path.write_text("".join(f"{line}\n" for line in story.log), encoding="utf-8")
    return path


def collect(story: Story, work_dir: Path) -> Outputs:
    """The results of a run that is done: everything below `output` and the rendered samples."""
    output = work_dir / "output"
    files = sorted(path for folder in (output, work_dir / "samples") for path in folder.rglob("*") if path.is_file())
    alone = output / LORA_NAME
    model = alone if alone.is_file() else _packed_model(output, work_dir / "model.tar")
    return Outputs(model=model, files=files, log=write_log(story, work_dir))


def _packed_model(output: Path, target: Path) -> Path:
    """A model of many files, such as an adapter with its configuration, or a fully tuned one."""
    with tarfile.open(target, "w") as tar:
        for path in sorted(output.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(output))
    return target


def pack(outputs: Outputs, work_dir: Path, target: Path) -> Path:
    """One tar of the results: what lies in `output` at its top, the samples in a folder, the log beside them."""
    with tarfile.open(target, "w") as tar:
        for path in outputs.files:
            name = path.relative_to(work_dir)
            tar.add(path, name.relative_to("output") if name.parts[0] == "output" else name)
        tar.add(outputs.log, outputs.log.name)
    return target
