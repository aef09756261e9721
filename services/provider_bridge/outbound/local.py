"""The `local` provider: this machine. Truth is in files and a lock, so it survives every restart of the bridge."""

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

from services.provider_bridge.outbound import local_hardware
from services.provider_bridge.outbound.local_files import (
    AttemptFolder,
    process_start_ticks,
    read_json,
    write_atomically,
)
from services.provider_bridge.outbound.local_runner import ALREADY_CLAIMED, CLAIMED, STALE_EPOCH
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    LogPage,
    OurRun,
    RunView,
    StaleEpoch,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from shared.contracts.offers import Offer
from shared.contracts.trainer_environment import trainer_environment
from shared.problems import Unavailable

T = TypeVar("T")

NAME = "local"
HARDWARE = "this machine"
_LOG_PAGE_BYTES = 256 * 1024
_CODE_ROOT = Path(__file__).resolve().parents[3]
_LAUNCH_TIMEOUT_S = 20.0
_FORCE_AFTER_S = 10.0
"""How long after the grace period a runner that does not act is itself killed."""
TRAINER_DRAIN_S = 7 * 24 * 3600
"""How long a trainer that has finished waits for a gateway that is away: an idle process is cheap and a cancel still
ends it, while a result that was never delivered is trained and charged again."""


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where attempts live on this machine and what runs them."""

    state_dir: Path
    trainer_python: Path
    trainer_dir: Path
    environ: Mapping[str, str]
    log_limit_bytes: int = 16 * 1024 * 1024


class LocalProvider:
    """Runs each attempt as one process tree of this machine, at most once."""

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._attempts = options.state_dir / "attempts"
        self._attempts.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.site = _site_of(options.state_dir)
        """The identity of this state folder."""

    @property
    def name(self) -> str:
        """`local`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Cancels at once, costs nothing, no limits; reachable only where its state folder is."""
        return Capabilities(
            can_cancel=True,
            live_logs=True,
            cost=False,
            spot=False,
            max_run_time_s=None,
            upload_limit_bytes=None,
            site=self.site,
            fences_epochs=True,
            default_hardware=HARDWARE,
            tested_against="itself",
        )

    async def quote(self) -> list[Offer]:
        """This machine with its GPUs. It costs what billing says, which to the provider is nothing."""
        return [await local_hardware.offer(NAME, HARDWARE)]

    async def submit(self, order: StartOrder) -> str:
        """Starts the runner and returns when it has claimed the attempt, or finds the claim that is there."""
        self._check_trainer()
        tag = order.tag
        folder = self._folder(tag.attempt_id)
        if await self._in_thread(lambda: self._prepare(folder, order)):
            return str(tag.attempt_id)
        answer = await self._launch(folder, tag.epoch)
        if answer in {CLAIMED, ALREADY_CLAIMED}:
            return str(tag.attempt_id)
        if answer == STALE_EPOCH:
            raise StaleEpoch
        raise Unavailable(f"the runner of attempt {tag.attempt_id} broke before it started; see {folder.runner_log}")

    async def find(self, tag: Tag) -> RunView | None:
        """The run, with every lower epoch shut out for good."""
        folder = self._folder(tag.attempt_id)

        def look() -> RunView | None:
            folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with folder.fenced():
                if not folder.raise_fence(tag.epoch):
                    raise StaleEpoch
                return _view(folder)

        return await self._in_thread(look)

    async def fetch(self, ref: str) -> RunView | None:
        """The run as its files show it."""
        folder = self._folder(UUID(ref))

        def look() -> RunView | None:
            if not folder.root.is_dir():
                return None
            with folder.fenced():
                return _view(folder)

        return await self._in_thread(look)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Writes the wish down; the runner carries it out, and is itself killed if it does not."""
        folder = self._folder(UUID(ref))

        def ask() -> None:
            if not folder.root.is_dir():
                return
            with folder.fenced():
                if not folder.raise_fence(tag.epoch):
                    raise StaleEpoch
                _ask_to_end(folder, grace_s)

        await self._in_thread(ask)

    async def confirm_gone(self, ref: str) -> bool:
        """Whether neither runner nor trainer lives."""
        folder = self._folder(UUID(ref))

        def look() -> bool:
            if not folder.root.is_dir():
                return True
            with folder.fenced():
                return not folder.is_alive()

        return await self._in_thread(look)

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The trainer's output as its runner keeps it; the cursor is a byte offset."""
        path = self._folder(UUID(ref)).log

        def read() -> LogPage:
            if not path.is_file():
                return LogPage(lines=[], cursor=after)
            with path.open("rb") as file:
                file.seek(int(after or 0))
                content = file.read(_LOG_PAGE_BYTES)
            whole = content.rpartition(b"\n")[0] if len(content) == _LOG_PAGE_BYTES else content
            lines = whole.decode("utf-8", "replace").splitlines()
            return LogPage(lines=lines, cursor=str(int(after or 0) + len(content)))

        return await self._in_thread(read)

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """Nobody sends any."""
        raise WebhookRefused("unreadable", "this machine sends no webhooks")

    async def validate_credentials(self) -> Account:
        """It has none; the account is the machine's."""
        return Account(username="this machine")

    async def balance(self) -> Balance:
        """Nothing is charged."""
        return Balance(micro_usd=None, note="This machine charges nothing.")

    async def close(self) -> None:
        """Nothing is held open."""

    async def list_ours(self) -> list[OurRun]:
        """Every attempt folder whose run is alive."""

        def look() -> list[OurRun]:
            return [run for root in sorted(self._attempts.iterdir()) if (run := _living(root)) is not None]

        return await self._in_thread(look)

    def _folder(self, attempt_id: UUID) -> AttemptFolder:
        return AttemptFolder(self._attempts / str(attempt_id))

    def _check_trainer(self) -> None:
        options = self._options
        if shutil.which(str(options.trainer_python)) is None:
            raise StartRefused(
                "This machine has no trainer environment.",
                "Run `just setup-trainer`, or set BRIDGE_TRAINER_PYTHON to a Python that has the trainer's packages.",
            )
        if not options.trainer_dir.is_dir():
            raise StartRefused(
                "The trainer's code is not on this machine.",
                "Set BRIDGE_TRAINER_DIR to the folder that holds `trainer/`.",
            )

    def _prepare(self, folder: AttemptFolder, order: StartOrder) -> bool:
        """Writes what the runner needs; True if the attempt was started already and nothing is to be done."""
        tag = order.tag
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with folder.fenced():
            if not folder.raise_fence(tag.epoch):
                raise StaleEpoch
            if folder.started.exists():
                return True
            inputs = folder.start_folder(tag.epoch)
            for path in (inputs, folder.work):
                path.mkdir(exist_ok=True, mode=0o700)
            write_atomically(inputs / "spec.json", msgspec.json.encode(order.spec).decode())
            write_atomically(inputs / "token", order.token)
            write_atomically(inputs / "launch.json", json.dumps(self._launch_order(folder, inputs, order.max_run_s)))
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
        module = "services.provider_bridge.outbound.local_runner"
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


def _site_of(state_dir: Path) -> str:
    """The name of this state folder, made once."""
    path = state_dir / "site"
    folder = AttemptFolder(state_dir)
    with folder.fenced():
        if not path.exists():
            write_atomically(path, os.urandom(8).hex())
        return path.read_text(encoding="ascii")


def _view(folder: AttemptFolder) -> RunView | None:
    """What the files say; inside `fenced`."""
    if not folder.started.exists():
        return None
    ref = folder.root.name
    alive = folder.is_alive()
    ended = read_json(folder.exit)  # read after the lock: a runner writes it before it lets go
    if ended:
        return RunView(
            ref=ref,
            word="exited",
            exit_code=int(ended["code"]),
            ended_at=datetime.fromisoformat(ended["ended_at"]),
            last_words=str(ended.get("last_words", "")),
        )
    if not alive:
        return RunView(ref=ref, word="gone", ended_at=folder.last_sign_of_life())
    return RunView(ref=ref, word="running" if folder.trainer.exists() else "claimed")


def _living(root: Path) -> OurRun | None:
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
        return OurRun(tag=Tag(attempt_id=attempt_id, epoch=folder.fence()), ref=root.name)


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
