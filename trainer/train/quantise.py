# pyright: basic
"""A frozen base in fewer bits: the adapter learns in float32 beside weights that are unpacked when they are used."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from trainer.failures import AttemptFailed

_BLOCK_OF_NF4 = 64


def quantise(model: nn.Module, precision: str, device: torch.device) -> int:
    """Pack the weights of every Linear in the model's repeated blocks; returns how many layers were packed.

    What stands before and after the blocks stays as it is: it is small, and the result depends on it most. `precision`
    is a value of `base_model_precision`. Raises AttemptFailed(bad_config) when this machine cannot.
    """
    layers = [(name, module) for name, module in model.named_modules() if _is_packable(name, module)]
    if precision == "nf4-bnb":
        _pack_nf4(model, layers, device)
    elif precision != "no_change":
        _pack_torchao(model, {name for name, _ in layers}, precision)
    return 0 if precision == "no_change" else len(layers)


def _is_packable(name: str, module: Any) -> bool:
    in_a_block = any(part.isdigit() for part in name.split("."))
    return in_a_block and type(module) is nn.Linear and module.weight.numel() % _BLOCK_OF_NF4 == 0


def _pack_torchao(model: nn.Module, names: set[str], precision: str) -> None:
    quantisation: Any = _library("torchao.quantization", precision)
    configs = {"int8-torchao": "Int8WeightOnlyConfig", "fp8wo-torchao": "Float8WeightOnlyConfig"}
    config = getattr(quantisation, configs[precision])(version=2)
    quantisation.quantize_(model, config, filter_fn=lambda _module, name: name in names)


def _pack_nf4(model: nn.Module, layers: list[tuple[str, Any]], device: torch.device) -> None:
    layer_kinds: Any = _library("bitsandbytes", "nf4-bnb").nn
    for name, linear in layers:
        dtype = linear.weight.dtype
        packed = layer_kinds.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        packed.weight = layer_kinds.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        if linear.bias is not None:
            packed.bias = linear.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed.to(device))


def _library(name: str, precision: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        message = f"base_model_precision {precision} needs {package}, which this machine does not have"
        raise AttemptFailed("bad_config", message, "Use no_change, or install the trainer's lock.") from error
