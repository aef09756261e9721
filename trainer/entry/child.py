"""The trainer as a child process of a provider's entry: started, followed through its spool, and ended in good order.

The entry itself stays light: it imports no torch, and a fault of the training cannot take it down.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from shared.contracts.run import ExitCode, ReportLine, RunSpec
from shared.contracts.trainer_environment import trainer_environment

CODE_ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.2
_LAST_LINES = 5
_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class ChildOptions:
    """How trainers are started on this machine. Times are seconds."""

    python: str = sys.executable
    device: str = "auto"
    grace_s: float = 60.0
    """From SIGTERM to SIGKILL: a checkpoint is saved and delivered in between."""
    environ: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run: what to train, under which token (empty when there is no gateway), where, and for how long."""

    spec: RunSpec
    work_dir: Path
    token: str = ""
    max_run_s: float | None = None


class TrainerChild:
    """One trainer process. Used as a context manager: on the way out it has ended, whatever happened inside."""

    def __init__(self, order: Order, options: ChildOptions) -> None:
        self._order = order
        self._options = options
        # Spec and token lie outside of the work folder, whose content becomes output.
        self._inputs = tempfile.TemporaryDirectory(prefix="tunewright-run-")
        self._spool = order.work_dir / "events.jsonl"
        self._read_bytes = 0
        self._asked_to_stop = False
        self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    @property
    def log_path(self) -> Path:
        """What the trainer printed."""
        return self._order.work_dir / "trainer.log"

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def new_lines(self) -> list[ReportLine]:
        """The report lines written since the last call; a line that is half written waits for the next."""
        if not self._spool.exists():
            return []
        with self._spool.open("rb") as stream:
            stream.seek(self._read_bytes)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._read_bytes += len(whole) + len(newline)
        return [msgspec.json.decode(line, type=ReportLine) for line in whole.splitlines()]

    def follow(self, on_line: Callable[[ReportLine], None]) -> int:
        """Hand over every report line as it comes; the exit code once the trainer has ended."""
        while True:
            code = self.poll()
            for line in self.new_lines():
                on_line(line)
            if code is not None:
                return code
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)

    def stop(self) -> None:
        """Ask for a checkpoint and an orderly end; returns at once. Repeats ask no more: a second SIGTERM kills."""
        if self.poll() is None and not self._asked_to_stop:
            self._asked_to_stop = True
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it has started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> int:
        """Stop, wait for the grace period, kill; the exit code. Harmless once it has ended."""
        self.stop()
        deadline = time.monotonic() + self._options.grace_s
        while self.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)
        return self.close()

    def close(self) -> int:
        """Kill what is left and remove spec and token; the exit code."""
        self.kill()
        self._inputs.cleanup()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.returncode

    def last_words(self) -> str:
        """The last lines printed: what a crash without a report leaves."""
        with self.log_path.open("rb") as stream:
            stream.seek(max(0, self.log_path.stat().st_size - _LAST_WORDS_BYTES))
            lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_LINES:])

    def _start(self) -> subprocess.Popen[bytes]:
        order, options, inputs = self._order, self._options, Path(self._inputs.name)
        order.work_dir.mkdir(parents=True, exist_ok=True)
        spec, token = inputs / "spec.json", inputs / "token"
        spec.write_bytes(msgspec.json.encode(order.spec))
        command = [options.python, "-m", "trainer", "run", "--spec", str(spec), "--work-dir", str(order.work_dir)]
        command += ["--device", options.device, "--stop-with-parent"]
        if order.token:
            token.touch(mode=0o600)
            token.write_text(order.token, encoding="utf-8")
            command += ["--token-file", str(token)]
        if order.spec.gateway_url is None:
            command += ["--offline"]
        environ = {"TRAINER_GRACE_S": str(options.grace_s / 2), **trainer_environment(options.environ)}
        if order.max_run_s is not None:
            environ["TRAINER_MAX_RUN_S"] = str(order.max_run_s)
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=CODE_ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )


def describe_exit(code: int, failure: Mapping[str, object] | None, last_words: str) -> str:
    """One sentence for people: how the trainer ended and what to do, from its own report if there is one."""
    name = ExitCode(code).name.lower() if code in set(ExitCode) else f"signal {-code}" if code < 0 else "unknown"
    if failure is None:
        return f"exit {code} ({name}): {last_words or 'the trainer left no word'}"
    return f"exit {code} ({failure.get('kind', name)}): {failure.get('message')}. {failure.get('advice', '')}".strip()
