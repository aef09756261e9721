"""A small real program in the trainer's place: reads its spec, obeys signals, ends as its config says."""

import asyncio
import contextlib
import json
import os
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil

from shared.contracts.run import RunSpec

T = TypeVar("T")

PROGRAM = """#!/usr/bin/env python3
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("verb")
for name in ("--spec", "--token-file", "--work-dir"):
    parser.add_argument(name)
parser.add_argument("--drain-s", type=float)
given = parser.parse_args()
assert (given.module, given.verb) == ("trainer", "run"), given
spec = json.load(open(given.spec))
plan = spec["config"]

def stop(*_):
    sys.exit(plan.get("code_on_stop", 75))

signal.signal(signal.SIGTERM, signal.SIG_IGN if plan.get("stubborn") else stop)
started = {"pid": os.getpid(), "token": open(given.token_file).read(), "env": dict(os.environ), "cwd": os.getcwd(),
           "argv": sys.argv, "spec_mode": oct(os.stat(given.token_file).st_mode & 0o777)}
fresh = os.path.join(given.work_dir, f".{os.getpid()}")
with open(fresh, "w") as file:
    json.dump(started, file)
os.rename(fresh, os.path.join(given.work_dir, f"started-{os.getpid()}.json"))
print("x" * plan.get("print_bytes", 0))
if "say" in plan:
    print(plan["say"])
if plan.get("leave_child") and os.fork() == 0:
    while True:
        time.sleep(60)
while "code" not in plan and not os.path.exists(os.path.join(given.work_dir, "finish")):
    time.sleep(0.02)
sys.exit(plan.get("code", 0))
"""


def install(folder: Path) -> Path:
    """Writes the program; its path goes where BRIDGE_TRAINER_PYTHON goes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stand-in-trainer"
    path.write_text(PROGRAM, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def a_spec(attempt_id: UUID, **plan: Any) -> RunSpec:
    """A run of the stand-in that does as `plan` says: nothing = go on until told to stop."""
    return RunSpec(
        job_id=str(attempt_id),
        attempt_id=str(attempt_id),
        attempt_number=1,
        gateway_url=None,
        config=plan,
        dataloader=[],
        output_prefix="x",
    )


def starts(state_dir: Path, attempt_id: UUID) -> list[dict[str, Any]]:
    """What every trainer process that was ever started for an attempt wrote down of itself."""
    files = (state_dir / "attempts" / str(attempt_id)).glob("work/started-*.json")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def finish(state_dir: Path, attempt_id: UUID) -> None:
    """Lets a waiting stand-in end with code 0."""
    (state_dir / "attempts" / str(attempt_id) / "work" / "finish").touch()


def end_all(folder: Path) -> None:
    """Ends every process that was started for something below `folder`: runners and trainers outlive their bridge."""
    left = [process for process in psutil.process_iter(["cmdline"]) if _is_about(process, folder)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _is_about(process: psutil.Process, folder: Path) -> bool:
    command: list[str] = process.info["cmdline"] or []
    return any(part.startswith(f"{folder}/") for part in command)


def is_running(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def kill(pid: int, number: int) -> None:
    """Sends a signal to a process of the test."""
    os.kill(pid, number)


async def eventually(what: str, probe: Callable[[], Awaitable[T | None]], limit_s: float = 60) -> T:
    """The first true value of `probe`, or AssertionError naming what never came."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := await probe():
            return value
        await asyncio.sleep(0.02)  # the pace of asking
    raise AssertionError(f"not within {limit_s:g} s: {what}")
