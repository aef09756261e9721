"""Checkpoints: folders that appear whole or not at all, proven by a manifest, and enough to go on bit for bit."""

import json
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from trainer.files import fsync_path, sha256_of

MANIFEST_NAME = "manifest.json"
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


class CheckpointWriter:
    """Fill `scratch` with files, then `commit`. A folder that was never committed is never read."""

    def __init__(self, root: Path, step: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._step = step
        self.scratch = root / f".tmp-{step}-{os.getpid()}"
        shutil.rmtree(self.scratch, ignore_errors=True)
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
