# pyright: basic
"""How a batch is noised and how its error counts, against the formulas, on numbers; no network."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from tiny.pipelines import build
from torch import Generator, Tensor

from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from trainer.families.protocol import BaseModel
from trainer.families.registry import load_family
from trainer.families.scheduled import noise_schedule
from trainer.train.noising import FlowNoising, Noised, ScheduleNoising, noising_for, step_odds
from trainer.train.objective import Batch, bends, errors_of, training_loss

CLEAN = torch.randn(512, 4, 8, 8, generator=Generator().manual_seed(1))
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FLOW = load_family("flux")


def spec_of(family: str = "flux", **keys: Any) -> DiffusionSpec:
    return check_diffusion({"model_family": family, "model_type": "lora", "max_train_steps": 1, **keys})


def flow(**keys: Any) -> FlowNoising:
    return FlowNoising(FLOW, spec_of(**keys))


def levels(**keys: Any) -> Tensor:
    """Twenty thousand drawn noise levels for 4,096 image tokens."""
    return flow(**keys).levels(20_000, Generator().manual_seed(2), 4096)


def schedule(*, velocity: bool = False, changed: dict[str, Any] | None = None, **keys: Any) -> ScheduleNoising:
    return ScheduleNoising({**SCHEDULE, **(changed or {})}, spec_of("sd1x", **keys), velocity=velocity)


def drawn(noising: Any, seed: int = 3) -> Noised:
    return noising.draw(CLEAN, Generator().manual_seed(seed))


def test_flow_goes_straight_from_the_picture_to_noise() -> None:
    noised = drawn(flow())
    time = noised.time.view(-1, 1, 1, 1)
    assert torch.allclose(noised.noisy - time * noised.target, CLEAN, atol=1e-5)
    assert torch.allclose(noised.noisy + (1 - time) * noised.target, CLEAN + noised.target, atol=1e-5)
    assert torch.allclose(noised.noise_to_signal, noised.time / (1 - noised.time))


def test_one_seed_gives_one_draw_and_another_another() -> None:
    for noising in (flow(), schedule(), schedule(offset_noise=True, noise_offset_probability=1)):
        one, same, other = drawn(noising), drawn(noising), drawn(noising, seed=4)
        assert torch.equal(one.noisy, same.noisy)
        assert torch.equal(one.time, same.time)
        assert not torch.equal(one.time, other.time)


@pytest.mark.parametrize(
    ("keys", "mean", "deviation"),
    [
        ({"flow_schedule_shift": 0}, 0.5, 0.208),
        ({"flow_schedule_shift": 0, "flow_use_uniform_schedule": True}, 0.5, 0.289),
        ({"flow_schedule_shift": 0, "flow_use_beta_schedule": True}, 0.5, 0.2236),
        ({"flow_schedule_shift": 0, "flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 6}, 0.75, 0.1443),
        ({"flow_schedule_shift": 0, "flow_sigmoid_scale": 0.1}, 0.5, 0.025),
        ({"flow_custom_timesteps": "250,750"}, 0.5, 0.25),
        ({"flow_custom_timesteps": "0.2, 0.6"}, 0.4, 0.2),
    ],
)
def test_flow_levels_follow_the_configured_distribution(keys: dict[str, Any], mean: float, deviation: float) -> None:
    found = levels(**keys)
    assert (found.mean().item(), found.std().item()) == pytest.approx((mean, deviation), abs=0.005)


def test_a_shift_moves_levels_towards_noise_and_auto_takes_it_from_the_tokens() -> None:
    plain, shifted, auto = (
        levels(flow_schedule_shift=0),
        levels(flow_schedule_shift=3),
        levels(flow_schedule_auto_shift=1),
    )
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain))
    by_tokens = 2.718281828**1.15
    assert torch.allclose(auto, by_tokens * plain / (1 + (by_tokens - 1) * plain))


def test_a_schedule_keeps_the_variance_and_asks_for_the_noise_or_the_velocity() -> None:
    noised, velocity = drawn(schedule()), drawn(schedule(velocity=True))
    assert torch.equal(noised.noisy, velocity.noisy)
    ratio = noised.noise_to_signal.view(-1, 1, 1, 1)
    signal = 1 / (1 + ratio.square()).sqrt()
    blur = ratio * signal
    assert torch.allclose(noised.noisy, signal * CLEAN + blur * noised.target, atol=1e-4)
    assert torch.allclose(velocity.target, signal * noised.target - blur * CLEAN, atol=1e-4)
    assert noised.time.dtype == torch.int64
    assert (noised.time.min().item(), noised.time.max().item()) == pytest.approx((0, 999), abs=8)


def test_min_snr_weights_are_those_of_the_paper_in_both_forms() -> None:
    """Against diffusers' signal-to-noise ratio: min(snr, 5) over snr, and over snr + 1 for the velocity."""
    plain, velocity = drawn(schedule(snr_gamma=5)), drawn(schedule(velocity=True, snr_gamma=5))
    snr = compute_snr(DDPMScheduler.from_config(SCHEDULE), plain.step)
    assert plain.weight is not None
    assert velocity.weight is not None
    assert torch.allclose(plain.weight, snr.clamp(max=5) / snr, rtol=1e-3)
    assert torch.allclose(velocity.weight, snr.clamp(max=5) / (snr + 1), rtol=1e-3)
    assert drawn(schedule()).weight is None


def test_zero_terminal_snr_leaves_no_picture_in_the_last_step_and_needs_velocity() -> None:
    often_last = {"timestep_bias_strategy": "range", "timestep_bias_begin": 999, "timestep_bias_multiplier": 100}
    last = drawn(schedule(velocity=True, changed={"rescale_betas_zero_snr": True}, snr_gamma=5, **often_last))
    empty = last.step == 999
    assert empty.any()
    assert torch.allclose(last.target[empty], -CLEAN[empty], atol=1e-3)
    assert last.weight is not None
    assert torch.isfinite(last.weight).all()
    with pytest.raises(Exception, match="nothing to learn at zero signal"):
        schedule(changed={"rescale_betas_zero_snr": True})


def test_offset_noise_shifts_whole_channels_of_the_noise() -> None:
    noise = drawn(schedule(offset_noise=True, noise_offset=1.0, noise_offset_probability=1)).target
    assert noise.mean((2, 3)).std() == pytest.approx(1.0, abs=0.05)
    never = drawn(schedule(offset_noise=True, noise_offset=1.0, noise_offset_probability=0)).target
    assert never.mean((2, 3)).std() == pytest.approx(1 / 8, abs=0.02)


def test_input_perturbation_adds_noise_that_the_target_does_not_hold() -> None:
    plain, perturbed = drawn(flow()), drawn(flow(input_perturbation=0.5))
    assert torch.equal(plain.target, perturbed.target)
    time = perturbed.time.view(-1, 1, 1, 1)
    extra = (perturbed.noisy - CLEAN - time * perturbed.target) / time.clamp_min(0.05)
    assert extra[time.flatten() > 0.2].std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("none", None), ("earlier", slice(0, 250)), ("later", slice(750, 1000)), ("range", slice(100, 200))],
)
def test_a_timestep_bias_draws_its_steps_more_often(strategy: str, expected: slice | None) -> None:
    keys = {"timestep_bias_begin": 100, "timestep_bias_end": 200} if strategy == "range" else {}
    spec = spec_of("sd1x", timestep_bias_strategy=strategy, timestep_bias_multiplier=9, **keys)
    odds = step_odds(1000, spec)
    if expected is None:
        assert odds is None
        return
    assert odds is not None
    rest = torch.ones(1000)
    rest[expected] = 9
    assert torch.equal(odds, rest)
    share = torch.isin(drawn(ScheduleNoising(SCHEDULE, spec, velocity=False)).step, torch.arange(1000)[expected])
    assert share.float().mean() == pytest.approx((odds[expected].sum() / odds.sum()).item(), abs=0.08)


def noised_at(step: float, ratio: float) -> Noised:
    one = torch.zeros(1, 1, 1, 1)
    return Noised(one, one, torch.tensor([step]), torch.tensor([step]), torch.tensor([ratio]))


def test_huber_errors_are_squared_near_zero_and_straight_far_away() -> None:
    for loss_type, near, far in (("l2", 1.0, 2.0), ("huber", 1.0, 0.2), ("smooth_l1", 10.0, 2.0)):
        spec = spec_of(loss_type=loss_type, huber_schedule="constant", huber_c=0.1)
        small, large = (errors_of(torch.full((1, 1, 1, 1), x), noised_at(1, 1), spec).item() for x in (1e-3, 1e3))
        assert small == pytest.approx(near * 1e-6, rel=0.01)
        assert large == pytest.approx(far * 1e3 if loss_type != "l2" else 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "step", "ratio", "expected"),
    [
        ("constant", 900, 5, 0.1), ("exponential", 0, 1, 1.0), ("exponential", 1000, 1, 0.1),
        ("exponential", 500, 1, 0.3162), ("snr", 1, 0.0, 1.0), ("snr", 1, 1.0, 0.325), ("snr", 1, 1e6, 0.1),
    ],
)  # fmt: skip
def test_the_bend_of_huber_errors_follows_its_schedule(name: str, step: float, ratio: float, expected: float) -> None:
    spec = spec_of(loss_type="huber", huber_schedule=name, huber_c=0.1)
    assert bends(noised_at(step, ratio), spec).item() == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def sd1x(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = build("sd1x", tmp_path_factory.mktemp("sd1x"))
    return BaseModel(folder, torch.device("cpu"), torch.float32)


def test_the_bases_scheduler_says_what_is_predicted_and_the_config_may_say_otherwise(sd1x: BaseModel) -> None:
    family = load_family("sd1x")
    velocity = replace(sd1x, schedule={"prediction_type": "v_prediction"})
    assert (family.objective(sd1x), family.objective(velocity)) == ("epsilon", "v_prediction")
    one, other = (drawn(noising_for(family, base, spec_of("sd1x"))) for base in (sd1x, velocity))
    assert torch.equal(one.noisy, other.noisy)
    assert not torch.equal(one.target, other.target)
    pipeline = family.pipeline_of(velocity, {}, loaded=["scheduler"])
    assert pipeline.scheduler.config["prediction_type"] == noise_schedule(velocity)["prediction_type"] == "v_prediction"


def test_weights_change_a_batchs_loss_as_they_should(sd1x: BaseModel) -> None:
    """A network that answers nothing: the loss is the weighted mean square of the noise."""

    class Silent(torch.nn.Module):
        def forward(self, sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
            return (torch.zeros_like(sample),)

    family, spec = load_family("sd1x"), spec_of("sd1x", snr_gamma=5)
    noising = noising_for(family, sd1x, spec)
    batch = Batch(CLEAN, {"prompt_embeds": torch.zeros(1)})
    loss = training_loss(family, Silent(), batch, noising, Generator().manual_seed(3), spec)
    noised = drawn(noising)
    assert noised.weight is not None
    assert loss.item() == pytest.approx(
        (noised.weight * noised.target.square().mean((1, 2, 3))).mean().item(), rel=1e-5
    )
