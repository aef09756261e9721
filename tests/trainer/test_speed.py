# pyright: basic
"""What makes steps cheaper computes the same."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer.train.speed import make_adapters_lean

Forward = tuple[Tensor, list[Tensor]]


def _network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8, bias=False))
    layers.requires_grad_(False)
    chosen = {"target_modules": ["0", "2"], **options}
    config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **chosen)
    return inject_adapter_in_model(config, layers)


def _forward_and_gradients(network: nn.Module, x: Tensor) -> Forward:
    torch.manual_seed(1)  # dropout
    network.zero_grad()
    x = x.clone().requires_grad_()
    result = network(x)
    result.square().sum().backward()
    learned = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return result, [*learned, x.grad if x.grad is not None else torch.zeros(0)]


def _assert_same(left: Forward, right: Forward) -> None:
    torch.testing.assert_close(left[0], right[0])
    torch.testing.assert_close(left[1], right[1])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_a_lean_adapter_gives_the_values_and_gradients_of_pefts_own(dropout: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    network = _network(lora_dropout=dropout)
    wanted = _forward_and_gradients(network, x)
    assert make_adapters_lean(network) == 2
    _assert_same(_forward_and_gradients(network, x), wanted)
    assert len(wanted[1]) == 5, "two matrices of each layer and the input have gradients"


def test_a_lean_adapter_that_is_switched_off_leaves_the_base_alone() -> None:
    x = torch.randn(3, 12)
    network = _network()
    make_adapters_lean(network)
    with_adapter = network(x)
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled=False)
    off = network(x)
    base = nn.Sequential(network[0].base_layer, network[1], network[2].base_layer)  # pyright: ignore[reportIndexIssue] -- a Sequential
    torch.testing.assert_close(off, base(x))
    assert not torch.allclose(off, with_adapter)


def test_a_lean_adapter_under_autocast_returns_what_the_base_returns() -> None:
    x = torch.randn(3, 12)
    network = _network()
    make_adapters_lean(network)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), network(x), rtol=0.05, atol=0.2)


def test_adapters_of_another_kind_keep_pefts_forward() -> None:
    assert make_adapters_lean(_network(use_dora=True)) == 0
    assert make_adapters_lean(_network(lora_bias=True, target_modules=["0"])) == 0
