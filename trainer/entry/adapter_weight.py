# pyright: basic
"""How strongly a PEFT adapter acts on its model."""

from peft.tuners.lora import LoraLayer
from torch import nn


def scale_adapter(model: nn.Module, weight: float) -> None:
    """Multiplies what every LoRA layer adds by `weight`: 0 leaves the base, 1 the adapter as trained."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(weight)
