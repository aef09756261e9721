"""What would go wrong later and can be told before anything starts."""

import fcntl
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from deploy.embedded.options import UpOptions
from deploy.embedded.process import EmbeddedError, write_private

DATASET_ROOTS = "STORAGE_DATASET_ROOTS"


def check_dataset_roots(options: UpOptions, environ: Mapping[str, str]) -> None:
    """Whoever may be reached by strangers must say what they may read: a dataset is packed and can be downloaded."""
    if any(":" in str(root) for root in options.dataset_roots):
        raise EmbeddedError("a --dataset-root cannot have a colon in its path. Nothing was started.")
    given = options.dataset_roots or options.extra_env.get(DATASET_ROOTS) or environ.get(DATASET_ROOTS)
    if not given and not _is_loopback(options.host):
        raise EmbeddedError(
            f"listening on {options.host or 'every address'} lets others submit jobs, and without --dataset-root they "
            "could download any folder of this machine as a dataset. Name the directories that datasets come from "
            f"with --dataset-root DIR (may be repeated) or {DATASET_ROOTS}. Nothing was started.",
        )


def check_survivors(data_dir: Path, gateway_url: str) -> None:
    """Trainers that outlived the last start report to its address and know no other."""
    kept = _gateway_note(data_dir)
    last = kept.read_text(encoding="utf-8") if kept.exists() else gateway_url
    alive = live_attempts(data_dir / "bridge") if last != gateway_url else []
    if alive:
        raise EmbeddedError(
            f"{len(alive)} local training runs still report to {last} and would not find {gateway_url} "
            f"({', '.join(alive)}). Start with --port {urlsplit(last).port} and the host of last time, or wait for "
            "their end. Nothing was started.",
        )


def remember_gateway(data_dir: Path, gateway_url: str) -> None:
    """Keeps the address that trainers of this start are given."""
    write_private(_gateway_note(data_dir), gateway_url)


def live_attempts(state_dir: Path) -> list[str]:
    """Attempts of the local provider whose runner or trainer lives: `runner.lock` is held, by the kernel's word."""
    return sorted(lock.parent.name for lock in state_dir.glob("attempts/*/runner.lock") if _is_alive(lock.parent))


def _is_alive(folder: Path) -> bool:
    # The fence first: a runner that is just starting must not find its own lock taken by this look at it.
    fence = os.open(folder / "fence.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return _is_held(fence) or _is_file_held(folder / "runner.lock")
    finally:
        os.close(fence)


def _is_file_held(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _is_held(lock)
    finally:
        os.close(lock)


def _is_held(descriptor: int) -> bool:
    """Whether another process holds this lock; if none does, it is ours until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _gateway_note(data_dir: Path) -> Path:
    return data_dir / "run" / "gateway.url"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
