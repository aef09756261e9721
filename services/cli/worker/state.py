"""What the agent remembers across its own restarts: which run is its own. One agent per folder."""

import fcntl
import os
from pathlib import Path
from typing import Self
from uuid import UUID

import msgspec

from services.cli.failures import CliError
from shared.runs.folder import write_atomically


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """The run that is ours until the server has taken its end, or we were told to abandon it."""

    job_id: str
    attempt_id: UUID
    epoch: int
    told_begun: bool = False
    """The server knows that it was begun."""
    abandoned: bool = False
    """It is to end, and nobody is to be told how."""


class AgentState:
    """The folder, locked for as long as this process lives."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._path = folder / "current.json"
        self.current = self._read()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Takes the folder. Raises CliError when another agent has it, or it cannot be used."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CliError(f"{folder} cannot be used: {error}", advice="Name another with --state-dir.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise CliError(
                f"another worker runs in {folder}", advice="Each worker of a machine has a --state-dir of its own."
            ) from None
        return cls(folder, lock)

    def close(self) -> None:
        """Lets the folder go."""
        os.close(self._lock)

    def keep(self, current: Current | None) -> None:
        """Remembers the run, durably, before anything is done about it; None = there is none any more."""
        if current is None:
            self._path.unlink(missing_ok=True)
        else:
            write_atomically(self._path, msgspec.json.encode(current).decode())
        self.current = current

    def _read(self) -> Current | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Current)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise CliError(
                f"{self._path} cannot be read: {error}", advice="Look at the folder and remove it."
            ) from error
