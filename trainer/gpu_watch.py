"""Watches the GPU while it works: its numbers for the metrics, and its faults for the control plane.

A thread asks the driver every few seconds; a step never waits for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from trainer.control import Control
from trainer.gpu import Device, GpuFault, GpuLost, GpuRules, GpuSample, fault_in
from trainer.report.events import Reporter

_log = logging.getLogger("trainer.gpu")
SAMPLE_INTERVAL_S = 5.0
HANG_S = 60.0
"""How long after a fault the step in progress may still come back before the attempt is given up."""


class GpuWatcher:
    """Samples a device until closed, or until its first fault, which goes to `on_fault` on the watcher's thread."""

    def __init__(
        self, device: Device, rules: GpuRules, on_fault: Callable[[GpuFault], None], interval_s: float
    ) -> None:
        self._device = device
        self._rules = rules
        self._on_fault = on_fault
        self._interval_s = interval_s
        self._latest: GpuSample | None = None
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; a driver that hangs is not waited for."""
        self.closing.set()
        self._thread.join(timeout=1)

    def numbers(self) -> dict[str, Any]:
        """The newest sample's members of a metrics line; never waits."""
        latest = self._latest
        return {} if latest is None else latest.numbers()

    def _run(self) -> None:
        while not self.closing.is_set():
            fault = self._look()
            if fault is not None:
                self._on_fault(fault)
                return
            self.closing.wait(self._interval_s)

    def _look(self) -> GpuFault | None:
        try:
            self._latest = self._device.sample()
        except GpuLost as lost:
            self._latest = None
            return self._rules.lost(str(lost))
        return self._rules.judge(self._latest, time.monotonic())


@contextmanager
def watching(
    device: Device | None,
    gpu: str,
    reporter: Reporter,
    control: Control,
    *,
    interval_s: float = SAMPLE_INTERVAL_S,
    hang_s: float = HANG_S,
) -> Generator[None]:
    """Watches `device` (None: nothing can be asked) around work on the GPU named `gpu`.

    Raises AttemptFailed(gpu_fault) in place of an error of CUDA that tells of a fault. A fault that the watcher finds
    ends the attempt at the next step; if the step never comes back, through `control.abandon`.
    """

    def report(fault: GpuFault) -> None:
        _log.error("GPU %s is faulty: %s: %s", fault.gpu, fault.kind, fault.detail)
        reporter.emit("gpu_fault", kind=fault.kind, gpu=fault.gpu, detail=fault.detail, step=reporter.step)
        control.gpu_fault = fault

    def found(fault: GpuFault) -> None:
        report(fault)
        if not fault.can_save and watcher is not None and not watcher.closing.wait(hang_s):
            _log.error("the step in progress does not come back")
            if control.abandon is not None:
                control.abandon(fault.failure())

    watcher = GpuWatcher(device, GpuRules(gpu), found, interval_s) if device is not None else None
    if watcher is not None:
        reporter.gpu_numbers = watcher.numbers
        watcher.start()
    try:
        yield
    except RuntimeError as error:
        told = fault_in(error)
        if told is not None and control.gpu_fault is None:
            report(GpuFault(told[0], gpu, told[1]))
        if control.gpu_fault is None:
            raise
        raise control.gpu_fault.failure() from error
    finally:
        if watcher is not None:
            watcher.close()
