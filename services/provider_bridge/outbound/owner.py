"""A name for this bridge process that its successor gets again, and that no two living processes of a folder share."""

import fcntl
import os
from pathlib import Path
from typing import Self

_MAX_OWNERS = 1000


class OwnerName:
    """`<site>/<n>`: n is the first number whose lock file is free. The kernel frees it when the process dies.

    So whoever gets the name knows that its last bearer is dead, and may take over its leases at once.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor

    @classmethod
    def claim(cls, state_dir: Path, site: str) -> Self:
        """Takes the first free name."""
        folder = state_dir / "owners"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(_MAX_OWNERS):
            descriptor = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return cls(f"{site}/{number}", descriptor)
        raise RuntimeError(f"{_MAX_OWNERS} bridges run in {state_dir}")

    def release(self) -> None:
        """Gives the name back."""
        os.close(self._descriptor)
