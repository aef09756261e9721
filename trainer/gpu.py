"""What a GPU says of itself, and which of it is a fault that ends the attempt. Running out of memory is none."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared.contracts.run import GpuFaultKind
from trainer.failures import AttemptFailed

SLOWDOWN_S = 300.0
"""A GPU that holds itself back for so long without a pause has a cooling or power supply that needs a person."""

Slowdown = Literal["thermal", "power_brake"]
_SLOWDOWN_WORDS: dict[Slowdown, str] = {
    "thermal": "it is too hot and has slowed itself down",
    "power_brake": "its power supply has told it to slow down",
}
_ADVICE = "The job goes on from its last checkpoint, elsewhere if it can. Have the GPU checked if this happens again."

_FATAL_XIDS: dict[int, tuple[GpuFaultKind, str]] = {
    48: ("ecc", "double-bit ECC error"),
    62: ("xid", "internal micro-controller halt"),
    64: ("ecc", "a memory row could not be remapped"),
    74: ("xid", "NVLink error"),
    79: ("fallen_off_bus", "the GPU has fallen off the bus"),
    94: ("ecc", "contained ECC error"),
    95: ("ecc", "uncontained ECC error"),
    119: ("xid", "the GPU's system processor does not answer"),
    120: ("xid", "error of the GPU's system processor"),
}
"""Xids of broken hardware. Others (13, 31, 43, 45, …) are a program's own, which torch raises as a CUDA error."""

_CUDA_SIGNS: tuple[tuple[str, GpuFaultKind], ...] = (
    ("uncorrectable ECC error", "ecc"),
    ("GPU is lost", "fallen_off_bus"),
    ("fallen off the bus", "fallen_off_bus"),
    ("device-side assert", "cuda_error"),
    ("illegal memory access", "cuda_error"),
    ("illegal instruction", "cuda_error"),
    ("misaligned address", "cuda_error"),
    ("launch failure", "cuda_error"),
    ("launch timed out", "cuda_error"),
    ("hardware stack error", "cuda_error"),
    ("CUDA error: unknown error", "cuda_error"),
    ("CUBLAS_STATUS_EXECUTION_FAILED", "cuda_error"),
    ("CUBLAS_STATUS_INTERNAL_ERROR", "cuda_error"),
    ("CUDNN_STATUS_EXECUTION_FAILED", "cuda_error"),
)


class GpuLost(Exception):  # noqa: N818 -- a state of the machine
    """The driver has the GPU no more."""


@dataclass(frozen=True)
class GpuSample:
    """One look at the GPU. None: this GPU or its driver does not say. Errors count since the driver was loaded."""

    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    uncorrected_errors: int | None
    slowdowns: frozenset[Slowdown]
    xids: tuple[int, ...]

    def numbers(self) -> dict[str, Any]:
        """The members of a metrics line; what is not known is left out."""
        named = {
            "gpu_utilisation_percent": self.utilisation_percent,
            "gpu_temperature_c": self.temperature_c,
            "gpu_power_w": self.power_w,
            "gpu_memory_used_bytes": self.memory_used_bytes,
            "gpu_memory_total_bytes": self.memory_total_bytes,
        }
        return {name: value for name, value in named.items() if value is not None}


class Device(Protocol):
    """A GPU that can be asked."""

    def sample(self) -> GpuSample:
        """What it says of itself now. Raises GpuLost."""
        ...


@dataclass(frozen=True)
class GpuFault:
    """Something is wrong with a GPU. `can_save`: what is in its memory can still be trusted and read."""

    kind: GpuFaultKind
    gpu: str
    detail: str
    can_save: bool = False

    def failure(self) -> AttemptFailed:
        """The end of the attempt for this reason."""
        return AttemptFailed("gpu_fault", f"GPU {self.gpu}: {self.kind}: {self.detail}", _ADVICE)


def fault_in(error: BaseException) -> tuple[GpuFaultKind, str] | None:
    """What kind of fault an error of torch (or its cause) tells of, and its first line; None when it tells of none."""
    told: BaseException | None = error
    seen: list[BaseException] = []
    while told is not None and told not in seen:  # an error may be its own cause: `raise error from error`
        seen.append(told)
        text = str(told)
        if "out of memory" in text:
            return None
        for sign, kind in _CUDA_SIGNS:
            if isinstance(told, RuntimeError) and sign in text:
                return kind, text.strip().partition("\n")[0]
        told = told.__cause__
    return None


@dataclass
class GpuRules:
    """Decides which samples are faults. Times are of a monotonic clock, in seconds."""

    gpu: str
    slowdown_s: float = SLOWDOWN_S
    _first_errors: int | None = None
    _slow_since: dict[Slowdown, float] = field(default_factory=dict[Slowdown, float])

    def judge(self, sample: GpuSample, now_s: float) -> GpuFault | None:
        """The fault that this sample shows, if any. ECC errors of before the first sample are not this run's."""
        for xid in sample.xids:
            if xid in _FATAL_XIDS:
                kind, words = _FATAL_XIDS[xid]
                return GpuFault(kind, self.gpu, f"Xid {xid}: {words}")
        if sample.uncorrected_errors is not None:
            if self._first_errors is None:
                self._first_errors = sample.uncorrected_errors
            fresh = sample.uncorrected_errors - self._first_errors
            if fresh > 0:
                return GpuFault("ecc", self.gpu, f"{fresh} new uncorrectable memory errors")
        return self._slowed_down(sample, now_s)

    def lost(self, detail: str) -> GpuFault:
        """The fault of a GPU that cannot be asked any more."""
        return GpuFault("fallen_off_bus", self.gpu, detail)

    def _slowed_down(self, sample: GpuSample, now_s: float) -> GpuFault | None:
        self._slow_since = {name: since_s for name, since_s in self._slow_since.items() if name in sample.slowdowns}
        for name in sorted(sample.slowdowns):
            since_s = self._slow_since.setdefault(name, now_s)
            if now_s - since_s >= self.slowdown_s:
                detail = f"for {now_s - since_s:.0f} s {_SLOWDOWN_WORDS[name]} ({sample.temperature_c} °C)"
                return GpuFault(name, self.gpu, detail, can_save=True)
        return None
