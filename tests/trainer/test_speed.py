# pyright: basic
"""What makes steps cheaper computes the same."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from shared.contracts.training.loop import CommonSpec
from trainer.train.speed import choose_kernels, compile_for_steps, make_adapters_lean

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


class Block(nn.Module):
    """One of several."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class Network(nn.Module):
    """As diffusers' networks do, it names the blocks that repeat."""

    _repeated_blocks = ["Block"]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def _spec(**settings: Any) -> CommonSpec:
    return CommonSpec(model_type="lora", pretrained_model_name_or_path="base", **settings)


@pytest.mark.parametrize(("regional", "said"), [(True, "3 blocks"), (False, "the whole network")])
def test_a_compiled_network_gives_the_same_values_and_gradients(*, regional: bool, said: str) -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(4, 6)
    wanted = _forward_and_gradients(network, x)
    spec = _spec(dynamo_backend="aot_eager", dynamo_use_regional_compilation=regional)
    assert compile_for_steps(network, spec) == said
    compiled = [module for module in network.modules() if module._compiled_call_impl is not None]  # noqa: SLF001
    assert compiled == ([*network.blocks] if regional else [network])
    _assert_same(_forward_and_gradients(network, x), wanted)


def test_nothing_is_compiled_unless_asked_for() -> None:
    network = Network()
    assert compile_for_steps(network, _spec()) is None
    assert all(module._compiled_call_impl is None for module in network.modules())  # noqa: SLF001


@pytest.mark.parametrize("off", [True, False])
def test_tf32_is_used_unless_it_is_disabled(*, off: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        choose_kernels(Network(), torch.device("cpu"), _spec(disable_tf32=off))
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (not off, not off)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
