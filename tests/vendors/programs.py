"""The vendors' own programs, started as a provider would: in their environment, with the trainer as their child."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENDORS = ROOT / ".venv-vendors"
TRAINER_PYTHON = ROOT / ".venv-trainer" / "bin" / "python"
NETWORK_OF_TESTS = "127.0.0.0/8"


def vendors_python() -> str:
    """The interpreter with the vendors' packages, or AssertionError that says how to build it."""
    python = VENDORS / "bin" / "python"
    assert python.exists(), f"{VENDORS.name} is missing: run `just setup-vendors`"
    assert TRAINER_PYTHON.exists(), ".venv-trainer is missing: run `just setup-trainer`"
    return str(python)


def environment(work_dir: Path, **more: str) -> dict[str, str]:
    """What an operator sets for an entry on a machine without a GPU."""
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    vendors = Path(vendors_python()).parent
    return {
        **inherited,
        "PATH": f"{vendors}:{inherited.get('PATH', '')}",  # Cog starts its worker as `python` from PATH
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRAINER_PYTHON": str(TRAINER_PYTHON),
        "TUNEWRIGHT_WORK_DIR": str(work_dir),
        "TUNEWRIGHT_DEVICE": "cpu",
        "TUNEWRIGHT_GRACE_S": "30",
        "TUNEWRIGHT_PRIVATE_NETWORKS": NETWORK_OF_TESTS,
        **more,
    }


@contextlib.contextmanager
def running(
    command: list[str], env: Mapping[str, str], folder: Path, ready: Callable[[], bool], limit_s: float = 60
) -> Generator[subprocess.Popen[bytes]]:
    """A program that is up when `ready` says so; asked to end at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "program.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, env=dict(env), cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + limit_s
        while not ready():
            assert process.poll() is None, log_path.read_text(encoding="utf-8", errors="replace")[-4000:]
            assert time.monotonic() < deadline, f"{command} was not ready in {limit_s} s"
            time.sleep(0.05)  # the pace of asking, not a guess at when it is ready
        yield process
    finally:
        process.terminate()
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            sys.stderr.write(f"{command[:3]} had to be killed\n")


def trainers_in(work_dir: Path) -> list[int]:
    """The process ids of trainers that work below a folder."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if "trainer" in words and any(word.startswith(str(work_dir)) for word in words):
                found.append(int(process.name))
    return found
