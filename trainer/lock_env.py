"""Compile `trainer.in` into four hash-locked files: `trainer.txt`, `torch.txt`, `cuda.txt` and `source.txt`.

`python trainer/lock_env.py --cpu-wheel FILE` (needs `uv` on PATH or beside this interpreter). torch's hashes
are those of its public wheels plus that of the CPU-only wheel given here; the file names no place to fetch it from.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parent / "requirements"
PINS = Path(__file__).parents[1] / "deploy" / "replicate" / "requirements.txt"
_CUDA_NAME = re.compile(r"^(nvidia-(?!ml-py)|cuda-|triton\b|bitsandbytes\b)")
_SOURCE_ONLY = re.compile(r"^rouge-score\b")
"""Packages without wheels; everything else is installed from wheels alone."""
_COMPILE = [
    "pip", "compile", "--python-version", "3.11", "--universal", "--generate-hashes", "--no-emit-index-url",
    "--no-header", "--no-annotate", "--quiet",
]  # fmt: skip


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def blocks_of(compiled: str) -> list[str]:
    """Split a compiled requirements file into one block of text per pinned package."""
    return [block.rstrip() for block in re.split(r"\n(?=[A-Za-z0-9])", compiled.strip())]


def pins() -> str:
    """The locked versions without hashes, for Cog: it rewrites torch's line, and hashes are for all or for none."""
    lines = [line for lock in sorted(LOCKS.glob("*.txt")) for line in lock.read_text(encoding="utf-8").splitlines()]
    return "".join(f"{line.removesuffix(chr(92)).strip()}\n" for line in lines if re.match(r"[A-Za-z0-9]", line))


def main() -> int:
    """Write the lock files beside `trainer.in`."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cpu-wheel", type=Path, required=True)
    options = arguments.parse_args()
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv) if uv.exists() else "uv", *_COMPILE, str(LOCKS / "trainer.in")]
    compiled = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts: dict[str, list[str]] = {"trainer.txt": [], "torch.txt": [], "cuda.txt": [], "source.txt": []}
    for block in blocks_of(compiled):
        if block.startswith("torch=="):
            parts["torch.txt"].append(f"{block} \\\n    --hash=sha256:{sha256_of(options.cpu_wheel)}")
        elif _SOURCE_ONLY.match(block):
            parts["source.txt"].append(block)
        else:
            parts["cuda.txt" if _CUDA_NAME.match(block) else "trainer.txt"].append(block)
    for name, blocks in parts.items():
        (LOCKS / name).write_text("\n".join(blocks) + "\n", encoding="utf-8")
    PINS.write_text(pins(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
