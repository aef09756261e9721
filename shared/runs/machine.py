"""Runs on this machine, each as one process tree, at most once. Truth is in files and a lock: it survives restarts."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import msgspec

from shared.contracts.trainer_environment import trainer_environment
from shared.problems import Unavailable
from shared.runs.folder import AttemptFolder, process_start_ticks, read_json, write_atomically
from shared.runs.runner import ALREADY_CLAIMED, CLAIMED, STALE_EPOCH

T = TypeVar("T")

_LOG_PAGE_BYTES = 256 * 1024
_CODE_ROOT = Path(__file__).resolve().parents[2]
_LAUNCH_TIMEOUT_S = 20.0
_FORCE_AFTER_S = 10.0
"""How long after the grace period a runner that does not act is itself killed."""
TRAINER_DRAIN_S = 7 * 24 * 3600
"""How long a trainer that has finished waits for a gateway that is away: an idle process is cheap and a cancel still
ends it, while a result that was never delivered is trained and charged again."""


class CannotStart(Exception):  # noqa: N818 - an answer, not an error
    """This machine cannot start any run: why, and what a person can do."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class OlderEpoch(Exception):  # noqa: N818 - an answer, not an error
    """A newer epoch has asked about this attempt; nothing was done."""


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where attempts live on this machine and what runs them."""

    state_dir: Path
    trainer_python: Path
    trainer_dir: Path
    environ: Mapping[str, str]
    log_limit_bytes: int = 16 * 1024 * 1024


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its files show it: claimed, running, exited (with a code), or gone (nobody knows how it ended)."""

    word: str
    exit_code: int | None = None
    ended_at: datetime | None = None
    last_words: str = ""


class Machine:
    """Starts, finds, shows and ends runs. Raises Unavailable when the folder of one cannot be used."""

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._attempts = options.state_dir / "attempts"
        self._attempts.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def start(self, attempt_id: UUID, epoch: int, spec: bytes, token: str, max_run_s: int | None) -> None:
        """Starts the runner and returns when it has claimed the attempt, or finds the claim that is there.

        Raises:
            CannotStart: there is no trainer on this machine.
            OlderEpoch: a newer epoch has asked about this attempt.
            Unavailable: it may or may not have been started.
        """
        self._check_trainer()
        folder = self.folder(attempt_id)
        if await self._in_thread(lambda: self._prepare(folder, epoch, spec, token, max_run_s)):
            return
        answer = await self._launch(folder, epoch)
        if answer == STALE_EPOCH:
            raise OlderEpoch
        if answer not in {CLAIMED, ALREADY_CLAIMED}:
            raise Unavailable(f"the runner of attempt {attempt_id} broke before it started; see {folder.runner_log}")

    async def find(self, attempt_id: UUID, epoch: int) -> Run | None:
        """The run, with every lower epoch shut out for good. Raises OlderEpoch."""
        folder = self.folder(attempt_id)

        def look() -> Run | None:
            folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with folder.fenced():
                if not folder.raise_fence(epoch):
                    raise OlderEpoch
                return _view(folder)

        return await self._in_thread(look)

    async def look(self, attempt_id: UUID) -> Run | None:
        """The run as its files show it."""
        folder = self.folder(attempt_id)

        def look() -> Run | None:
            if not folder.root.is_dir():
                return None
            with folder.fenced():
                return _view(folder)

        return await self._in_thread(look)

    async def end(self, attempt_id: UUID, epoch: int, grace_s: float) -> None:
        """Writes the wish down; the runner carries it out, and is itself killed if it does not. Raises OlderEpoch."""
        folder = self.folder(attempt_id)

        def ask() -> None:
            if not folder.root.is_dir():
                return
            with folder.fenced():
                if not folder.raise_fence(epoch):
                    raise OlderEpoch
                _ask_to_end(folder, grace_s)

        await self._in_thread(ask)

    async def is_over(self, attempt_id: UUID) -> bool:
        """Whether neither runner nor trainer lives."""
        folder = self.folder(attempt_id)

        def look() -> bool:
            if not folder.root.is_dir():
                return True
            with folder.fenced():
                return not folder.is_alive()

        return await self._in_thread(look)

    async def log(self, attempt_id: UUID, after: str | None) -> tuple[list[str], str | None]:
        """Lines of the trainer's output as its runner keeps it, and the cursor behind them: a byte offset."""
        path = self.folder(attempt_id).log

        def read() -> tuple[list[str], str | None]:
            if not path.is_file():
                return [], after
            with path.open("rb") as file:
                file.seek(int(after or 0))
                content = file.read(_LOG_PAGE_BYTES)
            whole = content.rpartition(b"\n")[0] if len(content) == _LOG_PAGE_BYTES else content
            return whole.decode("utf-8", "replace").splitlines(), str(int(after or 0) + len(content))

        return await self._in_thread(read)

    async def living(self) -> list[tuple[UUID, int]]:
        """Every attempt whose run is alive, and the highest epoch that asked about it."""

        def look() -> list[tuple[UUID, int]]:
            return [run for root in sorted(self._attempts.iterdir()) if (run := _living(root)) is not None]

        return await self._in_thread(look)

    def folder(self, attempt_id: UUID) -> AttemptFolder:
        """Where the files of an attempt lie."""
        return AttemptFolder(self._attempts / str(attempt_id))

    def _check_trainer(self) -> None:
        options = self._options
        if shutil.which(str(options.trainer_python)) is None:
            raise CannotStart(
                "This machine has no trainer environment.",
                "Run `just setup-trainer`, or set BRIDGE_TRAINER_PYTHON to a Python that has the trainer's packages.",
            )
        if not options.trainer_dir.is_dir():
            raise CannotStart(
                "The trainer's code is not on this machine.",
                "Set BRIDGE_TRAINER_DIR to the folder that holds `trainer/`.",
            )

    def _prepare(self, folder: AttemptFolder, epoch: int, spec: bytes, token: str, max_run_s: int | None) -> bool:
        """Writes what the runner needs; True if the attempt was started already and nothing is to be done."""
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with folder.fenced():
            if not folder.raise_fence(epoch):
                raise OlderEpoch
            if folder.started.exists():
                return True
            inputs = folder.start_folder(epoch)
            for path in (inputs, folder.work):
                path.mkdir(exist_ok=True, mode=0o700)
            write_atomically(inputs / "spec.json", spec.decode())
            write_atomically(inputs / "token", token)
            write_atomically(inputs / "launch.json", json.dumps(self._launch_order(folder, inputs, max_run_s)))
        return False

    def _launch_order(self, folder: AttemptFolder, inputs: Path, max_run_s: int | None) -> dict[str, object]:
        files = ["--spec", inputs / "spec.json", "--token-file", inputs / "token", "--work-dir", folder.work]
        argv = [self._options.trainer_python, "-m", "trainer", "run", *files, "--drain-s", TRAINER_DRAIN_S]
        if max_run_s is not None:
            argv += ["--max-run-s", max_run_s]
        return {
            "argv": [str(part) for part in argv],
            "cwd": str(self._options.trainer_dir),
            "log_limit_bytes": self._options.log_limit_bytes,
        }

    async def _launch(self, folder: AttemptFolder, epoch: int) -> int:
        try:
            launcher = await self._spawn_runner(folder, epoch)
        except OSError as error:
            raise Unavailable(f"this machine cannot start a process now: {error}") from error
        try:
            async with asyncio.timeout(_LAUNCH_TIMEOUT_S):
                return await launcher.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                launcher.kill()
            # What it may have started is found by the next epoch; this one can start nothing after that.
            raise Unavailable("the runner did not answer in time") from None

    async def _spawn_runner(self, folder: AttemptFolder, epoch: int) -> asyncio.subprocess.Process:
        module = "shared.runs.runner"
        with folder.runner_log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-S", "-m", module, str(folder.root), str(epoch)),
                cwd=_CODE_ROOT,
                env=trainer_environment(self._options.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _in_thread(self, step: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(step)
        except OSError as error:  # a full disk, a folder we may not enter, another process that does not let go
            raise Unavailable(f"the folder of an attempt cannot be used: {error}") from error


def site_of(state_dir: Path) -> str:
    """The name of this state folder, made once."""
    path = state_dir / "site"
    folder = AttemptFolder(state_dir)
    with folder.fenced():
        if not path.exists():
            write_atomically(path, os.urandom(8).hex())
        return path.read_text(encoding="ascii")


def _view(folder: AttemptFolder) -> Run | None:
    """What the files say; inside `fenced`."""
    if not folder.started.exists():
        return None
    alive = folder.is_alive()
    ended = read_json(folder.exit)  # read after the lock: a runner writes it before it lets go
    if ended:
        return Run(
            word="exited",
            exit_code=int(ended["code"]),
            ended_at=datetime.fromisoformat(ended["ended_at"]),
            last_words=str(ended.get("last_words", "")),
        )
    if not alive:
        return Run(word="gone", ended_at=folder.last_sign_of_life())
    return Run(word="running" if folder.trainer.exists() else "claimed")


def _living(root: Path) -> tuple[UUID, int] | None:
    try:
        attempt_id = UUID(root.name)
    except ValueError:
        return None
    folder = AttemptFolder(root)
    if not folder.started.exists():
        return None
    with folder.fenced():
        if not folder.is_alive():
            return None
        return attempt_id, folder.fence()


def _ask_to_end(folder: AttemptFolder, grace_s: float) -> None:
    asked = read_json(folder.cancel)
    if not asked:
        # Written even when nothing has started: a runner that is on its way reads it before it starts a trainer.
        write_atomically(folder.cancel, json.dumps({"grace_s": grace_s, "asked_at": time.time()}))
        return
    overdue_s = time.time() - float(asked["asked_at"]) - float(asked["grace_s"])
    if overdue_s > _FORCE_AFTER_S and folder.is_alive():
        _kill_runner(folder)


def _kill_runner(folder: AttemptFolder) -> None:
    """Kills the runner, and by its death the trainer, if the pid still names the process that claimed the attempt."""
    claimed = read_json(folder.started) or {}
    pid, born = claimed.get("runner_pid"), claimed.get("runner_born_ticks")
    if not pid or born is None or sys.platform != "linux":
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if process_start_ticks(pid) == born:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
