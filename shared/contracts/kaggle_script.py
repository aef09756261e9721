"""A Kaggle kernel that runs one Tunewright job; `trainer.entry.kaggle` writes the job into its `JOB` line.

Standard library only: it first has to bring the trainer and its packages. Nothing secret is written below the working
folder, because all of that becomes the kernel's public output.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> int:
    """Run the job; its exit code is the trainer's, which Kaggle shows as an error unless it is 0."""
    job = json.loads(JOB)
    scratch = Path(tempfile.mkdtemp(prefix="tunewright-"))
    code = source(job["source"], scratch)
    python = interpreter(job["packages"], code, scratch)
    given = scratch / "input.json"
    given.touch(mode=0o600)
    given.write_text(json.dumps(job["input"]), encoding="utf-8")
    environ = {
        **os.environ,
        "TRAINER_PYTHON": python,
        "TUNEWRIGHT_INPUT_FILE": str(given),
        "TUNEWRIGHT_WORK_DIR": job["work_dir"] or str(scratch / "work"),
        "TUNEWRIGHT_MAX_RUN_S": str(job["max_run_s"]),
        "TUNEWRIGHT_GRACE_S": str(job["grace_s"]),
        "TRAINER_CHECKPOINT_EVERY_S": "900",
    }
    command = [python, "-m", "trainer.entry.container"]
    return subprocess.run(command, cwd=code, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
