# pyright: basic
"""Gradient checkpointing: blocks whose inner values are computed again in the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: Any, every: int) -> None:
    """Recompute every `every`-th block of a diffusers or transformers model, the first one included."""
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing(gradient_checkpointing_func=_chooser(every))
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if every > 1:
        choose = _chooser(every)
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = choose  # noqa: SLF001 -- where the library reads it


def _chooser(every: int) -> Callable[..., Any]:
    """Runs a block as it is, or recomputes it: blocks are numbered in the order of their first call."""
    numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def run(block: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        owner = block if isinstance(block, nn.Module) else getattr(block, "__self__", None)
        number = numbers.setdefault(owner, len(numbers)) if isinstance(owner, nn.Module) else 0
        if number % every:
            return block(*arguments, **options)
        return checkpoint(block, *arguments, use_reentrant=False, **options)

    return run
