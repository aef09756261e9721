"""What others ask of a running attempt (stop, save, sample), and what ends it. Set anywhere, read by the loop."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from shared.contracts.run import TrainerCommand
from trainer.failures import AttemptFailed, Superseded
from trainer.gpu import GpuFault

COMMANDS = ("stop", "checkpoint_now", "sample_now")
_GOES_ON = "The job goes on from its checkpoint."


@dataclass(frozen=True)
class Ending:
    """Why training ends before its last step. `saves`: what was learned since the last checkpoint is kept first."""

    failure: AttemptFailed
    saves: bool = True


class Control:
    """Thread-safe flags. `install_signal_handlers` must run on the main thread. Times are seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stop = threading.Event()
        self.superseded = threading.Event()
        self.checkpoint_now = threading.Event()
        self.sample_now = threading.Event()
        self.gpu_fault: GpuFault | None = None
        self.abandon: Callable[[AttemptFailed], None] | None = None
        """Ends the process with its last word said, for an attempt whose step never returns."""
        self._flags = {"stop": self.stop, "checkpoint_now": self.checkpoint_now, "sample_now": self.sample_now}
        self._clock = clock
        self._began_s = self._saved_s = clock()
        self._max_run_s: float | None = None
        self._checkpoint_every_s: float | None = None
        self._lock = threading.Lock()
        self._heard: set[str] = set()
        self._asked: list[TrainerCommand] = []

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT ask for a stop; a second one ends the process at once."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def limit(self, max_run_s: float | None, checkpoint_every_s: float | None) -> None:
        """End this long after the attempt began; save whenever so much time has passed. None: no such limit."""
        self._max_run_s, self._checkpoint_every_s = max_run_s, checkpoint_every_s

    def apply(self, command: TrainerCommand) -> bool:
        """Carry out a command that came with an acknowledgement, once for each id; False for a name of newer builds."""
        with self._lock:
            if command.id in self._heard:
                return True
            self._heard.add(command.id)
            if command.name not in self._flags:
                return False
            self._asked.append(command)
        self._flags[command.name].set()
        return True

    def carried_out(self, *names: str) -> list[TrainerCommand]:
        """The commands of these names that are done now; they are not asked for any more."""
        with self._lock:
            done = [command for command in self._asked if command.name in names]
            self._asked = [command for command in self._asked if command.name not in names]
            for name in {"checkpoint_now", "sample_now"} & {*names}:
                self._flags[name].clear()
        return done

    @property
    def time_is_up(self) -> bool:
        """Whether the time limit is reached."""
        return self._max_run_s is not None and self._clock() - self._began_s >= self._max_run_s

    def raise_if_superseded(self) -> None:
        """Raise Superseded once the gateway has said so."""
        if self.superseded.is_set():
            raise Superseded

    def ending(self, where: str) -> Ending | None:
        """Why the attempt must end now, if it must; `where` (`at step 7`) goes into the message."""
        if self.gpu_fault is not None:
            return Ending(self.gpu_fault.failure(), saves=self.gpu_fault.can_save)
        if self.stop.is_set():
            return Ending(AttemptFailed("preempted", f"stopped {where}", _GOES_ON))
        if self.time_is_up:
            message = f"stopped {where}: the time limit of {self._max_run_s:g} s is reached"
            return Ending(AttemptFailed("preempted", message, _GOES_ON))
        return None

    def checkpoint_is_due(self) -> bool:
        """Whether somebody asked for a checkpoint, or the last one is as old as the limit says."""
        every_s = self._checkpoint_every_s
        return self.checkpoint_now.is_set() or (every_s is not None and self._clock() - self._saved_s >= every_s)

    def checkpoint_saved(self) -> list[TrainerCommand]:
        """There is a new checkpoint; returns the commands that asked for it."""
        self._saved_s = self._clock()
        return self.carried_out("checkpoint_now")

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        # Only a flag: saving inside a handler could interrupt a half-written checkpoint.
        if self.stop.is_set():
            os._exit(128 + signal_number)
        self.stop.set()
