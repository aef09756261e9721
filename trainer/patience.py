"""How long an ending attempt may still wait for the gateway; a stop makes it short."""

import time

from trainer.control import Control


class Patience:
    """A deadline `total_s` from now that shrinks to `grace_s` once a stop is asked for."""

    def __init__(self, control: Control, total_s: float, grace_s: float) -> None:
        self._control = control
        self._grace_s = grace_s
        self._end = time.monotonic() + total_s
        self._hurried = False

    def remaining_s(self) -> float:
        """Seconds left; 0 when time is up or the attempt was superseded."""
        if self._control.superseded.is_set():
            return 0.0
        if self._control.stop.is_set() and not self._hurried:
            self._hurried = True
            self._end = min(self._end, time.monotonic() + self._grace_s)
        return max(0.0, self._end - time.monotonic())

    def at_least(self, seconds: float) -> None:
        """Leave room for one last try, however long the wait before it took."""
        self._end = max(self._end, time.monotonic() + seconds)
