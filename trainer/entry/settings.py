"""What an operator sets for every provider's entry, read from the environment once."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trainer.archives import ArchiveLimits
from trainer.downloads import DownloadRules, S3Access, networks_from
from trainer.entry.child import ChildOptions
from trainer.entry.intake import IntakeRules

PREFIX = "TUNEWRIGHT_"
_VOLUME = Path("/runpod-volume")
"""Where RunPod mounts a serverless endpoint's network volume: what lies there outlives the worker."""


@dataclass(frozen=True, kw_only=True)
class EntrySettings:
    """Variables are the names in upper case with `TUNEWRIGHT_` before them, and `TRAINER_PYTHON`."""

    work_dir: Path
    """Runs work in folders below it; on a volume, a run that is started again goes on from its checkpoints."""
    trainer_python: str
    device: str
    grace_s: float
    """From the request to stop to the kill."""
    intake: IntakeRules
    child: ChildOptions

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Raises ValueError naming the variable that cannot be read."""
        default_root = _VOLUME if _VOLUME.is_dir() else Path(tempfile.gettempdir())
        work_dir = Path(environ.get(f"{PREFIX}WORK_DIR") or default_root / "tunewright")
        python = environ.get("TRAINER_PYTHON") or sys.executable
        device = environ.get(f"{PREFIX}DEVICE") or "auto"
        grace_s = _number(environ, "GRACE_S", 60.0)
        max_bytes = int(_number(environ, "MAX_DATASET_BYTES", 100 * 1024**3))
        try:
            networks = networks_from(environ.get(f"{PREFIX}PRIVATE_NETWORKS", ""))
        except ValueError as error:
            raise ValueError(f"{PREFIX}PRIVATE_NETWORKS: {error}") from error
        downloads = DownloadRules(
            private_networks=networks,
            max_bytes=max_bytes,
            patience_s=_number(environ, "FETCH_S", 600.0),
            s3=_s3_access(environ),
        )
        return cls(
            work_dir=work_dir,
            trainer_python=python,
            device=device,
            grace_s=grace_s,
            intake=IntakeRules(
                work_root=work_dir, downloads=downloads, archives=ArchiveLimits(max_bytes=2 * max_bytes)
            ),
            child=ChildOptions(python=python, device=device, grace_s=grace_s, environ=dict(environ)),
        )


def _s3_access(environ: Mapping[str, str]) -> S3Access | None:
    """`TUNEWRIGHT_S3_...`, or the bucket that RunPod's endpoint is configured with."""

    def value(name: str) -> str:
        return environ.get(f"{PREFIX}S3_{name}") or environ.get(f"BUCKET_{name}", "")

    key, secret = value("ACCESS_KEY_ID"), value("SECRET_ACCESS_KEY")
    if not key or not secret:
        return None
    return S3Access(
        access_key_id=key,
        secret_access_key=secret,
        endpoint_url=value("ENDPOINT_URL"),
        region=value("REGION") or S3Access.region,
    )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(f"{PREFIX}{name}")
    try:
        return float(text) if text else default
    except ValueError as error:
        raise ValueError(f"{PREFIX}{name}: {text!r} is not a number") from error
