"""The program of a Kaggle kernel that runs one Tunewright job; `shared.contracts.kaggle` writes the job into `JOB`.

Standard library only: it first has to bring the trainer and its packages. Nothing secret is written below the working
folder, because all of that becomes the kernel's public output. Nobody imports it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOB = "{}"


def source(wanted: dict[str, str], scratch: Path) -> Path:
    """The folder with the packages `trainer` and `shared`: an input dataset, or a git repository."""
    if "folder" in wanted:
        found = sorted(Path(wanted["folder"]).rglob("trainer/entry/container.py"))
        if not found:
            raise SystemExit(f"no trainer lies in {wanted['folder']}: add the dataset with its source to the kernel")
        return found[0].parents[2]
    target = scratch / "source"
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", wanted["revision"], wanted["git"], str(target)]
    subprocess.run(command, check=True)
    return target


def interpreter(packages: str, code: Path, scratch: Path) -> str:
    """The Python to train with: `locks` builds the locked environment, anything else is a Python that is there."""
    if packages != "locks":
        return packages or sys.executable
    environment = scratch / "venv"
    subprocess.run([sys.executable, str(code / "trainer" / "setup_env.py"), "--venv", str(environment)], check=True)
    return str(environment / "bin" / "python")


def main(environ: Mapping[str, str]) -> int:
    """Run the job; its exit code is the trainer's. Kaggle shows no more than that it was not 0, so the log says it."""
    code = run(json.loads(JOB), environ)
    sys.stdout.write(f"tunewright: exit code {code}\n")
    return code


def run(job: dict[str, Any], environ: Mapping[str, str]) -> int:
    """One run of the trainer to its end."""
    scratch = Path(tempfile.mkdtemp(prefix="tunewright-"))
    code = source(job["source"], scratch)
    python = interpreter(job["packages"], code, scratch)
    given = scratch / "input.json"
    given.touch(mode=0o600)
    given.write_text(json.dumps(job["input"]), encoding="utf-8")
    given_environ = {
        **environ,
        "TRAINER_PYTHON": python,
        "TUNEWRIGHT_INPUT_FILE": str(given),
        "TUNEWRIGHT_WORK_DIR": job["work_dir"] or str(scratch / "work"),
        "TUNEWRIGHT_MAX_RUN_S": str(job["max_run_s"]),
        "TUNEWRIGHT_GRACE_S": str(job["grace_s"]),
        "TRAINER_CHECKPOINT_EVERY_S": "900",
    }
    command = [python, "-m", "trainer.entry.container"]
    ended = subprocess.run(command, cwd=code, env=given_environ, check=False).returncode
    return ended if ended >= 0 else 128 - ended  # as a shell says that a signal ended it


if __name__ == "__main__":
    sys.exit(main(os.environ))
