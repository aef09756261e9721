# pyright: basic
"""What makes a step cheaper without changing what it computes."""

import logging
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from shared.contracts.training.loop import CommonSpec

_log = logging.getLogger("trainer.train")
_ADAPTER = "default"


def make_adapters_lean(model: nn.Module) -> int:
    """Give every plain LoRA on a Linear a shorter way to the same result; returns how many layers took it.

    PEFT's own forward looks through adapter names, calls three modules and makes two more tensors of the layer's full
    width. Here the matrix multiplication itself scales and adds the low-rank product. Layers of another kind (DoRA,
    several adapters, quantised bases) keep PEFT's forward, and so does every layer while its adapter is off or merged.
    """
    plain = [module for module in model.modules() if _is_plain(module)]
    for module in plain:
        module.forward = MethodType(_lean_forward, module)
    return len(plain)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is LoraLinear
        and type(module.base_layer) is nn.Linear
        and list(module.lora_A) == [_ADAPTER]
        and not module.lora_variant
        and not module.lora_bias[_ADAPTER]
    )


def _lean_forward(self: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    down, up = self.lora_A[_ADAPTER].weight, self.lora_B[_ADAPTER].weight
    same_type = x.dtype == down.dtype or torch.is_autocast_enabled(x.device.type)
    if self.disable_adapters or self.merged_adapters or not same_type or args or options:
        return LoraLinear.forward(self, x, *args, **options)
    base, dropout = self.base_layer, self.lora_dropout[_ADAPTER]
    result = functional.linear(x, base.weight, base.bias)
    dropped = x if isinstance(dropout, nn.Identity) else dropout(x)
    reduced = functional.linear(dropped, down).flatten(0, -2)
    added = torch.addmm(result.flatten(0, -2), reduced, up.t(), alpha=self.scaling[_ADAPTER])
    return added.view(result.shape)


def speed_up(model: Any, device: torch.device, spec: CommonSpec) -> None:
    """Choose kernels, and compile as `dynamo_backend` asks. Called once, when everything is in the network."""
    choose_kernels(model, device, spec)
    compiled = compile_for_steps(model, spec)
    if compiled is not None:
        _log.info("%s will be compiled by %s in the first steps", compiled, spec.dynamo_backend)


def compile_for_steps(model: Any, spec: CommonSpec) -> str | None:
    """Compile the network as `dynamo_backend` asks: block by block where it repeats one, else whole; says which.

    One block is compiled once for all of its repetitions, which takes a tenth of the time and keeps gradient
    checkpointing between the blocks. Nothing is compiled before the first step.
    """
    if spec.dynamo_backend == "no":
        return None
    options = {"backend": spec.dynamo_backend, "mode": spec.dynamo_mode}
    blocks = _repeated_blocks(model) if spec.dynamo_use_regional_compilation else []
    for block in blocks or [model]:
        block.compile(**options)
    return f"{len(blocks)} blocks" if blocks else "the whole network"


def _repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that the network's class names (diffusers), or its layers (transformers)."""
    names = set(getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or [])
    return [module for module in model.modules() if type(module).__name__ in names]


def choose_kernels(model: nn.Module, device: torch.device, spec: CommonSpec) -> None:
    """TF32 for what stays in float32 on a GPU, and the memory layout that its convolutions are written for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not spec.disable_tf32
    if device.type == "cuda" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] -- its stub leaves this form out
