"""Checkpoints: folders that appear whole or not at all, proven by a manifest, and enough to go on bit for bit."""

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Generator as Generator_
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Generator

from trainer.failures import AttemptFailed
from trainer.files import fsync_path, sha256_of

MANIFEST_NAME = "manifest.json"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM_SIGNS = (
    "No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed",
)  # fmt: skip
_MORE_ROOM = "Free room there or choose a machine with a larger disk; lower checkpoints_total_limit; then resume."
_FOLDER_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class CheckpointFolder:
    """A finished checkpoint on disk."""

    path: Path
    step: int

    def file_names(self) -> list[str]:
        """All files, the manifest last, which is the order to upload them in."""
        names = sorted(path.name for path in self.path.iterdir() if path.name != MANIFEST_NAME)
        return [*names, MANIFEST_NAME]


@contextmanager
def room_for(folder: Path, wanted_bytes: int = 0) -> Generator_[None]:
    """What is written inside must find room. Raises AttemptFailed(disk_full) naming the folder when it does not.

    With fewer than `wanted_bytes` free on the folder's disk nothing is written at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < wanted_bytes:
        message = f"{free_bytes} bytes are free in {folder}, fewer than disk_low_threshold"
        raise AttemptFailed("disk_full", message, _MORE_ROOM)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if _is_disk_full(error):
            for left in folder.glob(".tmp-*"):
                shutil.rmtree(left, ignore_errors=True)  # room for the report of this failure, if for nothing else
            message = f"the disk of {folder} is full ({shutil.disk_usage(folder).free} bytes free)"
            raise AttemptFailed("disk_full", message, _MORE_ROOM) from error
        raise


def _is_disk_full(error: BaseException) -> bool:
    """By its number, or by its text: safetensors and torch write files in other languages, which lose the number."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    return any(sign in str(error) for sign in _NO_ROOM_SIGNS)


class CheckpointWriter:
    """Fill `scratch` with files, then `commit`. A folder that was never committed is never read."""

    def __init__(self, root: Path, step: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._root = root
        self._step = step
        self.scratch = root / f".tmp-{step}-{os.getpid()}"
        self.scratch.mkdir()

    def write_json(self, name: str, value: Any) -> None:
        """One JSON file."""
        (self.scratch / name).write_text(json.dumps(value, sort_keys=True, indent=1), encoding="utf-8")

    def commit(self) -> CheckpointFolder:
        """Write the manifest, force everything to disk and give the folder its name."""
        files = {
            path.name: {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
            for path in sorted(self.scratch.iterdir())
        }
        self.write_json(MANIFEST_NAME, {"step": self._step, "files": files})
        for path in self.scratch.iterdir():
            fsync_path(path)
        target = self._root / f"checkpoint-{self._step}"
        if target.exists():
            # A damaged folder of this step: rename cannot replace a folder that holds files.
            shutil.rmtree(target)
        self.scratch.rename(target)
        fsync_path(self._root)
        return CheckpointFolder(target, self._step)


def checkpoints_in(root: Path) -> list[CheckpointFolder]:
    """Finished checkpoints, newest first. Folders in the making are not listed."""
    if not root.exists():
        return []
    matches = [(path, _FOLDER_NAME.match(path.name)) for path in root.iterdir() if path.is_dir()]
    found = [CheckpointFolder(path, int(match.group(1))) for path, match in matches if match]
    return sorted(found, key=lambda folder: folder.step, reverse=True)


def damage_of(folder: CheckpointFolder) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every file is as the manifest says."""
    try:
        manifest = json.loads((folder.path / MANIFEST_NAME).read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            if sha256_of(folder.path / name) != entry["sha256"]:
                return f"{name} differs from the manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    return None


def prune(root: Path, keep: int, in_use: set[Path]) -> None:
    """Delete the oldest checkpoints beyond `keep`, except those still being sent."""
    for folder in checkpoints_in(root)[keep:]:
        if folder.path not in in_use:
            shutil.rmtree(folder.path)


def random_states(noise: Generator) -> dict[str, Any]:
    """Every source of chance, in types that `torch.load(weights_only=True)` reads."""
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 -- the global generator is what has to be saved
    return {
        "python": random.getstate(),
        "numpy": [str(numpy_state[0]), [int(word) for word in numpy_state[1]], *map(float, numpy_state[2:])],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "noise": noise.get_state(),
    }


def restore_random_states(states: dict[str, Any], noise: Generator) -> None:
    """Put every source of chance back to where `random_states` found it."""
    random.setstate(states["python"])
    name, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), int(position), int(has_gauss), cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    noise.set_state(states["noise"])


def draws(noise: Generator) -> list[torch.Tensor]:
    """The states of the sources that an update draws from, quick to take: torch's own, `noise`, each GPU's."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), noise.get_state(), *on_gpus]


def restore_draws(states: list[torch.Tensor], noise: Generator) -> None:
    """Put what `draws` took back, so that the same update draws the same again."""
    own, drawn, *on_gpus = states
    torch.set_rng_state(own)
    noise.set_state(drawn)
    if on_gpus:
        torch.cuda.set_rng_state_all(on_gpus)
