# pyright: basic
"""How much memory is used, and what is tried, one after the other, when there is not enough."""

import gc
import resource
import sys
from typing import Any

import torch

from shared.contracts.training.loop import CommonSpec
from trainer.failures import AttemptFailed
from trainer.train.recompute import recompute_blocks
from trainer.train.task import Divisible, Task

_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")
_BYTES_PER_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_MEBIBYTE = 1024 * 1024
_SPARSE_RECOMPUTATION = 2


def memory_numbers(device: torch.device) -> dict[str, int]:
    """`memory_bytes`, the peak of training so far (of the process on a CPU), and what tensors hold on a GPU now."""
    if device.type == "cuda":
        return {
            "memory_bytes": torch.cuda.max_memory_allocated(device),
            "gpu_memory_bytes": torch.cuda.memory_allocated(device),
            "gpu_memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    return {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_RSS_UNIT}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, by its type or by what allocators write."""
    ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return ran_out or any(sign in str(error) for sign in _SIGNS)


class MemoryLadder:
    """What is tried when an update does not fit: again, smaller micro-batches, blocks recomputed, then no more.

    The samples and the effective batch stay the same on every rung, and so do all draws of chance.
    """

    def __init__(self, task: Task, model: Any, spec: CommonSpec, device: torch.device) -> None:
        self._task, self._model, self._spec, self._device = task, model, spec, device
        self._failed_at: int | None = None
        self.parts = 1
        """Into how many parts every micro-batch is cut."""
        self.recomputes_every = (spec.gradient_checkpointing_interval or 1) if spec.gradient_checkpointing else 0
        """Every how many blocks are recomputed; 0 is none."""
        if self.recomputes_every:
            recompute_blocks(model, self.recomputes_every)

    def state(self) -> dict[str, int]:
        """The rung, as plain JSON values."""
        return {"parts": self.parts, "recomputes_every": self.recomputes_every}

    def restore(self, state: dict[str, int]) -> None:
        """Stand on the rung again on which a checkpoint was saved."""
        if state["parts"] != 1 and isinstance(self._task, Divisible):
            self._task.divide(state["parts"])
            self.parts = state["parts"]
        if state["recomputes_every"] != self.recomputes_every:
            self._recompute(state["recomputes_every"])

    def climb(self, step: int) -> str:
        """Change one thing, and say what. Raises AttemptFailed(out_of_memory) when nothing is left to change."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._failed_at != step:
            self._failed_at = step
            return f"memory ran out at step {step}; trying the step again with an emptied cache"
        if isinstance(self._task, Divisible) and self._task.divide(self.parts * 2):
            self.parts *= 2
            return f"memory ran out at step {step}; every batch is now taken in {self.parts} parts: the same samples"
        if self.recomputes_every == 0:
            self._recompute(_SPARSE_RECOMPUTATION)
            return f"memory ran out at step {step}; every second block is recomputed in the backward pass"
        if self.recomputes_every > 1:
            self._recompute(1)
            return f"memory ran out at step {step}; all blocks are recomputed in the backward pass"
        raise self._failure(step)

    def _recompute(self, every: int) -> None:
        recompute_blocks(self._model, every)
        self.recomputes_every = every

    def _failure(self, step: int) -> AttemptFailed:
        peak_mib = memory_numbers(self._device)["memory_bytes"] // _MEBIBYTE
        tried = "nothing is left to save: the smallest batches and recomputing all blocks were tried"
        message = f"memory ran out at step {step} with {self._task.load_of_one_batch()}, peak {peak_mib} MiB; {tried}"
        advice = self._task.advice_for_less_memory()
        if self._spec.model_type == "lora" and self._spec.base_model_precision == "no_change":
            advice = f"Set base_model_precision to int8-torchao, which halves the base. {advice}"
        return AttemptFailed("out_of_memory", message, advice)
