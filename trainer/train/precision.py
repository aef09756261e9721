# pyright: basic
"""Device and number type: what was asked for, what this machine can do, and what differs, said out loud."""

from dataclasses import dataclass

import torch

from trainer.failures import AttemptFailed


@dataclass(frozen=True)
class Precision:
    """Where and in what the base model runs. `notes` are warnings for the user."""

    device: torch.device
    dtype: torch.dtype
    notes: list[str]


def choose_precision(asked_device: str, mixed_precision: str) -> Precision:
    """`asked_device` is cpu, cuda or auto. Raises AttemptFailed(bad_config) when cuda is asked for and absent."""
    if asked_device == "cuda" and not torch.cuda.is_available():
        raise AttemptFailed("bad_config", "this machine has no usable CUDA device", "Start with --device auto.")
    use_cuda = asked_device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        return _on_cuda(torch.device("cuda"), mixed_precision)
    if mixed_precision == "bf16" and _cpu_has_bfloat16():
        return Precision(torch.device("cpu"), torch.bfloat16, [])
    if mixed_precision == "no":
        return Precision(torch.device("cpu"), torch.float32, [])
    note = f"this CPU has no fast {mixed_precision}; training in float32 instead"
    return Precision(torch.device("cpu"), torch.float32, [note])


def make_deterministic(device: torch.device) -> None:
    """One thread on CPUs (more are slower for small models and change sums) and only repeatable kernels."""
    # Repeatable kernels write all of what they return: filling it first only takes time, a tenth of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] -- by __setattr__
    if device.type == "cpu":
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(mode=True)
    else:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)


def _on_cuda(device: torch.device, mixed_precision: str) -> Precision:
    if mixed_precision == "no":
        return Precision(device, torch.float32, [])
    if mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
        return Precision(device, torch.float16, ["this GPU has no bfloat16; training in float16 instead"])
    return Precision(device, torch.bfloat16 if mixed_precision == "bf16" else torch.float16, [])


def _cpu_has_bfloat16() -> bool:
    # Without these instructions bfloat16 runs reference code, some 200 times slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
