"""What others ask of a running attempt: stop, save now, sample now, superseded. Set anywhere, read by the loop."""

import os
import signal
import threading
from types import FrameType

from trainer.failures import Superseded


class Control:
    """Thread-safe flags. `install_signal_handlers` must run on the main thread."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.superseded = threading.Event()
        self.checkpoint_now = threading.Event()
        self.sample_now = threading.Event()

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT ask for a stop; a second one ends the process at once."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def apply(self, name: str) -> None:
        """Carry out a command that came with an acknowledgement; unknown names are left to newer builds."""
        flags = {"stop": self.stop, "checkpoint_now": self.checkpoint_now, "sample_now": self.sample_now}
        if name in flags:
            flags[name].set()

    def raise_if_superseded(self) -> None:
        """Raise Superseded once the gateway has said so."""
        if self.superseded.is_set():
            raise Superseded

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        # Only a flag: saving inside a handler could interrupt a half-written checkpoint.
        if self.stop.is_set():
            os._exit(128 + signal_number)
        self.stop.set()
