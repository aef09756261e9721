"""Numbered places for processes that share a folder: no two living ones have the same; a dead one's is free again."""

import fcntl
import os
from pathlib import Path
from typing import Self

_MAX_SLOTS = 1000


class Slot:
    """The first number whose lock file `<folder>/<number>.lock` was free. The kernel frees it when the process dies.

    So whoever gets a number knows that its last bearer is dead, and may take over what it left behind.
    """

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self._descriptor = descriptor

    @classmethod
    def claim(cls, folder: Path) -> Self:
        """Takes the first free number. Raises RuntimeError when all are taken."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(_MAX_SLOTS):
            if (slot := cls.take(folder, number)) is not None:
                return slot
        raise RuntimeError(f"{_MAX_SLOTS} processes share {folder}")

    @classmethod
    def take(cls, folder: Path, number: int) -> Self | None:
        """Takes this number; None if a living process has it."""
        descriptor = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(number, descriptor)

    def release(self) -> None:
        """Gives the number back."""
        os.close(self._descriptor)
