"""Build the trainer's environment from its lock files. Standard library only, so that a bare Python can run it.

`python trainer/setup_env.py [--venv DIR]` makes `.venv-trainer` beside the source tree and installs the locks with
hashes checked. It returns at once when the environment was built from the same locks. The CUDA packages are installed
only when the torch that pip chose asks for them, so a machine with a CPU wheel at hand stays small.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path

LOCKS = Path(__file__).parent / "requirements"
_LOCK_NAMES = ("torch.txt", "trainer.txt", "cuda.txt", "source.txt")
_WHEELS_ONLY = ("--only-binary", ":all:")
_STAMP_NAME = "trainer-locks.sha256"
_ASKS_FOR_CUDA = """
import importlib.metadata as metadata, json
wanted = metadata.requires("torch") or []
names = [line for line in wanted if line.startswith(("nvidia-", "cuda-", "triton")) and "extra ==" not in line]
print(json.dumps(bool(names)))
"""


def stamp_of_locks() -> str:
    """One hash over all lock files and the Python version they are installed for."""
    digest = hashlib.sha256(sys.version.encode())
    for name in _LOCK_NAMES:
        digest.update((LOCKS / name).read_bytes())
    return digest.hexdigest()


def install(python: Path, lock_name: str, how: tuple[str, ...] = _WHEELS_ONLY) -> None:
    """Install exactly what one lock file lists; raises CalledProcessError when a hash or a download fails."""
    subprocess.run(_pip_install(python, lock_name, how), check=True)


def install_torch(python: Path) -> None:
    """Install the locked torch: a wheel that lies at hand (pip's find-links) before one that must be downloaded.

    pip alone prefers an index's wheel, since a page states its hash and a folder does not: gigabytes for nothing on a
    machine that was given a CPU build.
    """
    at_hand = _pip_install(python, "torch.txt", (*_WHEELS_ONLY, "--no-index"))
    if subprocess.run(at_hand, check=False, capture_output=True).returncode != 0:
        install(python, "torch.txt")


def _pip_install(python: Path, lock_name: str, how: tuple[str, ...]) -> list[str]:
    options = ["--quiet", "--quiet", "--require-hashes", "--no-deps", *how]
    return [str(python), "-m", "pip", "install", *options, "-r", str(LOCKS / lock_name)]


def build(folder: Path) -> None:
    """Create the environment in `folder` and fill it from the locks."""
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    python = folder / "bin" / "python"
    install_torch(python)
    asked = subprocess.run([str(python), "-c", _ASKS_FOR_CUDA], check=True, capture_output=True, text=True)
    if json.loads(asked.stdout):
        install(python, "cuda.txt")
    install(python, "trainer.txt")
    # Built with the locked setuptools, and not with whatever an isolated build would fetch.
    install(python, "source.txt", ("--no-build-isolation",))
    subprocess.run([str(python), "-m", "pip", "check"], check=True)


def main() -> int:
    """Build the environment unless its stamp equals the hash of the lock files."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--venv", type=Path, default=Path(__file__).resolve().parent.parent / ".venv-trainer")
    folder: Path = arguments.parse_args().venv
    stamp = folder / _STAMP_NAME
    if stamp.exists() and stamp.read_text(encoding="utf-8") == stamp_of_locks():
        sys.stdout.write(f"{folder.name} is up to date\n")
        return 0
    build(folder)
    stamp.write_text(stamp_of_locks(), encoding="utf-8")
    sys.stdout.write(f"{folder.name} is ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
