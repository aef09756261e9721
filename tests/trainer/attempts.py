# pyright: basic
"""Start attempts in a forked process (the libraries are loaded once, in the parent) or in this one."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shared.contracts.run import ReportLine, ResumePoint, RunSpec
from trainer.control import Control
from trainer.entry import session as _preloaded  # noqa: F401 -- imports torch and diffusers before the first fork
from trainer.entry.attempt import Options, run_attempt

FIXTURE = Path(__file__).parents[2] / "trainer" / "fixtures" / "tiny-flux-digits"
CONFIG = {
    "--model_family": "flux",
    "--model_type": "lora",
    "--pretrained_model_name_or_path": str(FIXTURE),
    "--seed": 11,
    "--max_train_steps": 6,
    "--train_batch_size": 4,
    "--resolution": 32,
    "--aspect_bucket_alignment": 8,
    "--tokenizer_max_length": 16,
    "--lora_rank": 4,
    "--lora_dropout": 0.1,
    "--learning_rate": 0.005,
    "--lr_scheduler": "cosine",
    "--lr_warmup_steps": 2,
    "--mixed_precision": "no",
    "--gradient_checkpointing": False,
    "--flow_schedule_shift": 1.0,
    "--checkpointing_steps": 2,
    "--validation_steps": 100,
    "--validation_disable": True,
    "--disable_benchmark": True,
}


class Attempt:
    """One attempt's work folder and, if it was forked, its process."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.work_dir = options.work_dir
        self.process: Any = None

    def run(self, control: Control | None = None) -> int:
        """Run in this process to the end."""
        return int(run_attempt(self.options, control or Control()))

    def fork(self, prepare: Callable[[], None] | None = None) -> "Attempt":
        """Run in a child; `prepare` may change the child's code before it starts."""

        def child() -> None:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            log = os.open(self.work_dir / "stderr.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 -- pytest replaced it
            control = Control()
            control.install_signal_handlers()
            if prepare is not None:
                prepare()
            code = int(run_attempt(self.options, control))
            sys.stderr.flush()
            os._exit(code)

        self.process = multiprocessing.get_context("fork").Process(target=child)
        self.process.start()
        return self

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, deadline_s: float = 200) -> int:
        self.process.join(deadline_s)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode

    def lines(self) -> list[ReportLine]:
        path = self.work_dir / "events.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return [msgspec.json.decode(line, type=ReportLine) for line in whole.splitlines()]

    def data(self, report_type: str) -> list[dict[str, Any]]:
        return [line.data for line in self.lines() if line.type == report_type]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.data("metrics")}

    def wait_for_step(self, step: int, deadline_s: float = 200) -> None:
        self.wait_for(lambda: any(line["step"] >= step for line in self.data("metrics")), deadline_s)

    def wait_for(self, condition: Callable[[], bool], deadline_s: float = 200) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, "the condition was not met in time"
            assert self.process is None or self.process.is_alive(), "the attempt ended early"
            time.sleep(0.005)

    @property
    def lora(self) -> Path:
        return self.work_dir / "output" / "pytorch_lora_weights.safetensors"

    def checkpoint(self, step: int) -> Path:
        return self.work_dir / "checkpoints" / f"checkpoint-{step}"


class AttemptStarter:
    """Builds attempts; keyword arguments override config keys, `exactly` is a config of its own."""

    def __init__(self, folder: Path, digits: Path, cache: Path) -> None:
        self._folder, self._digits, self._cache = folder, digits, cache

    def __call__(
        self, name: str = "attempt", *, gateway: Any = None, dataloader: list[dict[str, Any]] | None = None,
        datasets: list[Any] | None = None, resume: ResumePoint | None = None, drain_s: float = 20,
        cache: Path | None = None, exactly: dict[str, Any] | None = None, **config: Any,
    ) -> Attempt:  # fmt: skip
        entry = {"id": "digits", "type": "local", "dataset_type": "image", "caption_strategy": "textfile"}
        run = RunSpec(
            job_id="job-1",
            attempt_id=name,
            attempt_number=1,
            gateway_url=gateway.url if gateway is not None else None,
            config=exactly or {**CONFIG, **{f"--{key}": value for key, value in config.items()}},
            dataloader=dataloader or [{**entry, "instance_data_dir": str(self._digits)}],
            datasets=datasets or [],
            resume=resume,
            output_prefix=f"jobs/job-1/{name}",
        )
        spec_path = self._folder / f"{name}.json"
        spec_path.write_bytes(msgspec.json.encode(run))
        token_file = None
        if gateway is not None:
            token_file = self._folder / f"{name}.token"
            token_file.write_text(gateway.token + "\n", encoding="utf-8")
        return Attempt(
            Options(
                spec_path=spec_path,
                work_dir=self._folder / name,
                token_file=token_file,
                device="cpu",
                cache_dir=cache or self._cache,
                drain_s=drain_s,
                grace_s=10,
                fetch_s=10,
            )
        )


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
