# pyright: basic
import io
from typing import get_args

import pytest
import torch
from torch import nn

from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from shared.contracts.training.loop import Optimizer
from trainer.train.average import Average
from trainer.train.lion import Lion
from trainer.train.optim import build_optimizer, learning_rate_at, method_of, set_learning_rate

LIBRARIES = {"adamw8bit": "bitsandbytes", "lion8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def spec(**config: object) -> DiffusionSpec:
    return check_diffusion({"model_family": "flux", "model_type": "lora", "max_train_steps": 10, **config})


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 64)


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> float:
    loss = (model(torch.eye(64)) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_learns_and_goes_on_from_its_stored_state(name: str) -> None:
    if method_of(name) in LIBRARIES:
        pytest.importorskip(LIBRARIES[method_of(name)])
    settings = spec(optimizer=name, learning_rate=1.0 if name == "prodigy" else 0.01)
    whole = net()
    one = build_optimizer(list(whole.parameters()), settings)
    losses = [step(whole, one) for _ in range(12)]
    assert losses[-1] < losses[0]
    half, stored = net(), io.BytesIO()
    other = build_optimizer(list(half.parameters()), settings)
    assert [step(half, other) for _ in range(6)] == losses[:6]
    torch.save(other.state_dict(), stored)
    stored.seek(0)
    resumed = build_optimizer(list(half.parameters()), settings)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    set_learning_rate(resumed, settings.learning_rate)
    assert [step(half, resumed) for _ in range(6)] == losses[6:]


def test_lion_moves_as_bitsandbytes_has_it() -> None:
    reference_of = pytest.importorskip("bitsandbytes").optim.Lion
    ours, theirs = net(), net()
    own = Lion(list(ours.parameters()), 1e-3, (0.9, 0.99), 0.1)
    reference = reference_of(theirs.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        step(ours, own)
        step(theirs, reference)
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_each_restart_begins_at_the_full_rate() -> None:
    settings = spec(lr_scheduler="cosine_with_restarts", lr_num_cycles=2, learning_rate=0.1, lr_end=0)
    rates = [learning_rate_at(number, 8, settings) for number in range(8)]
    assert rates[0] == rates[4] == 0.1
    assert rates[2] == pytest.approx(0.05)
    assert rates == sorted(rates[:4], reverse=True) * 2


def test_an_average_copies_during_its_warm_up_and_then_keeps_its_decay() -> None:
    average = Average({"w": torch.zeros(1)}, decay=0.5, warmup_steps=2)
    for number, value in ((1, 4.0), (2, 8.0), (3, 0.0)):
        average.update({"w": torch.full((1,), value)}, number)
        assert average.tensors["w"].item() == {1: 4.0, 2: 8.0, 3: 4.0}[number]
