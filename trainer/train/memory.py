# pyright: basic
"""How much memory is used, and what to advise when there is not enough."""

import resource
import sys

import torch

from shared.contracts.training.loop import CommonSpec
from trainer.failures import AttemptFailed
from trainer.train.task import Task

_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")
_BYTES_PER_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def memory_numbers(device: torch.device) -> dict[str, int]:
    """`memory_bytes`, the peak of training so far (of the process on a CPU), and what tensors hold on a GPU now."""
    if device.type == "cuda":
        return {
            "memory_bytes": torch.cuda.max_memory_allocated(device),
            "gpu_memory_bytes": torch.cuda.memory_allocated(device),
            "gpu_memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    return {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_RSS_UNIT}


def out_of_memory_failure(error: Exception, spec: CommonSpec, task: Task) -> Exception:
    """The failure to raise when `error` means memory ran out, naming the setting that would help; else `error`."""
    ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _SIGNS)
    if not ran_out:
        return error
    message = f"memory ran out with {task.load_of_one_batch()}"
    return AttemptFailed("out_of_memory", message, _advice(spec, task))


def _advice(spec: CommonSpec, task: Task) -> str:
    if not spec.gradient_checkpointing:
        return "Set gradient_checkpointing to true."
    if spec.train_batch_size > 1:
        smaller = spec.train_batch_size // 2
        steps = spec.gradient_accumulation_steps * 2
        return (
            f"Set train_batch_size to {smaller} and gradient_accumulation_steps to {steps}: the same effective batch."
        )
    return task.advice_for_less_memory()
