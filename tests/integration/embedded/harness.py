"""One `up` of the driver as a test sees it: a process, its output, and the directory it keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deploy.embedded.process import free_port

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 120.0


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


@dataclass
class Up:
    """`start` returns when it says that it is ready; `run` returns when it has ended."""

    data_dir: Path
    port: int = field(default_factory=free_port)
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    python: str = sys.executable
    module: str = "tests.integration.embedded.driver"
    user: str | None = None
    process: subprocess.Popen[str] | None = None
    output: str = ""

    def launch(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [
                *(self.python, "-m", self.module),
                *("--data-dir", str(self.data_dir), "--port", str(self.port), *self.arguments),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "200", **self.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=self.user,
            extra_groups=[] if self.user else None,
        )
        return self.process

    def start(self) -> "Up":
        self.read_until("Ctrl-C; local training", self.launch())
        return self

    def run(self) -> int:
        """To its own end."""
        return self.finish(self.launch())

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.finish(self.process)

    def finish(self, process: subprocess.Popen[str]) -> int:
        rest, _ = process.communicate(timeout=DEADLINE_S)
        self.output += rest
        return process.returncode

    def read_until(self, text: str, process: subprocess.Popen[str] | None = None) -> None:
        child = process or self.process
        assert child is not None
        assert child.stdout is not None
        for line in child.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"it ended before it said {text!r}:\n{self.output}")

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.data_dir / "run" / "state.json").read_text(encoding="utf-8"))

    @property
    def secrets(self) -> dict[str, Any]:
        return json.loads((self.data_dir / "secrets.json").read_text(encoding="utf-8"))

    @property
    def pids(self) -> dict[str, int]:
        return {name: mark["pid"] for name, mark in self.state["children"].items()}

    @property
    def superuser_dsn(self) -> str:
        password = self.secrets["postgres"]["inspector"]
        superuser = self.secrets["postgres"]["postgres"]
        return str(self.state["log_dsn"]).replace(f"inspector:{password}", f"postgres:{superuser}")

    def until_children_are_up(self, names: Collection[str]) -> None:
        """Returns when each of them says that it is up: one that is asked to end before that ends without a word."""

        def says_so(name: str) -> bool:
            log = self.data_dir / "logs" / f"{name}.log"
            return log.exists() and f"{name} is up" in log.read_text(encoding="utf-8")

        wait_until(lambda: all(says_so(name) for name in names), f"{sorted(names)} are up")

    def journal(self) -> list[dict[str, Any]]:
        path = self.data_dir / "journal"  # written by children: not there when all of them ended before they listened
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def kill_everything(self) -> None:
        """What a machine that loses power leaves: nothing runs, nothing was closed."""
        assert self.process is not None
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # its parent's death may have reached it first
                process.kill()
        self.process.communicate()
        psutil.wait_procs(processes, DEADLINE_S)

    def end(self) -> None:
        """Whatever became of the test, nothing of it stays behind."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.stop()
        if self.process.stdout is not None:
            self.process.stdout.close()
