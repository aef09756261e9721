# pyright: basic
"""One NVIDIA GPU as its driver shows it: NVML through nvidia-ml-py, which has no types. The rules are in gpu.py."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import pynvml

from trainer.gpu import GpuLost, GpuSample, Slowdown

T = TypeVar("T")
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_SLOWDOWNS: dict[int, Slowdown] = {
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power_brake",
}
_MILLIWATTS = 1000


class NvmlDevice:
    """A GPU that NVML knows. Each reading is None where this GPU or driver does not have it."""

    def __init__(self, handle: object) -> None:
        self._handle = handle
        self._events = self._watch_for_xids()

    def sample(self) -> GpuSample:
        """What the GPU says of itself now. Raises GpuLost when it is there no more."""
        load = self._read(lambda: pynvml.nvmlDeviceGetUtilizationRates(self._handle))
        memory = self._read(lambda: pynvml.nvmlDeviceGetMemoryInfo(self._handle))
        power_mw = self._read(lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle))
        reasons = self._read(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)) or 0
        return GpuSample(
            utilisation_percent=None if load is None else int(load.gpu),
            temperature_c=self._read(
                lambda: pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            power_w=None if power_mw is None else power_mw / _MILLIWATTS,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            uncorrected_errors=self._read(self._uncorrected_errors),
            slowdowns=frozenset(name for bit, name in _SLOWDOWNS.items() if reasons & bit),
            xids=self._new_xids(),
        )

    def _uncorrected_errors(self) -> int:
        return pynvml.nvmlDeviceGetTotalEccErrors(
            self._handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )

    def _watch_for_xids(self) -> object | None:
        try:
            events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(self._handle, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError:  # not in containers without the right, not on Windows
            return None
        return events

    def _new_xids(self) -> tuple[int, ...]:
        found: list[int] = []
        with contextlib.suppress(pynvml.NVMLError):  # a timeout: there are no more
            while self._events is not None:
                event = pynvml.nvmlEventSetWait(self._events, 0)
                found.append(int(event.eventData))
        return tuple(found)

    @staticmethod
    def _read(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except pynvml.NVMLError as error:
            if error.args[0] in _LOST:
                raise GpuLost(str(error)) from error
            return None


def open_device(uuid: str) -> NvmlDevice | None:
    """The GPU with this UUID (`GPU-` and 32 hex digits with dashes); None where there is no NVML or no such GPU."""
    try:
        pynvml.nvmlInit()
        return NvmlDevice(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
