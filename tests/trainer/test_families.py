# pyright: basic
"""Twelve families on one loop: each tiny model learns real digits, and its files work in the vendor's own pipeline."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import AttemptStarter
from family_runs import PROMPT, SIDE, FamilyRun
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from tiny.pipelines import RECIPES
from torch import Tensor

from trainer.families.protocol import RenderRequest, placed
from trainer.train.lora import Adapter
from trainer.train.noising import noising_for
from trainer.train.objective import Batch, training_loss
from trainer.train.speed import make_adapters_lean

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]
FAMILIES = list(RECIPES)
BY_ROUNDING = 1.5 / 255


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory, digits: Path, shared_cache: Path) -> Callable[[str], FamilyRun]:
    runs: dict[str, FamilyRun] = {}

    def run(name: str) -> FamilyRun:
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = FamilyRun(name, folder, AttemptStarter(folder, digits, shared_cache))
        return runs[name]

    return run


@pytest.fixture(params=FAMILIES)
def run(request: pytest.FixtureRequest, run_of: Callable[[str], FamilyRun]) -> FamilyRun:
    return run_of(request.param)


def with_lora(run: FamilyRun, pipeline: Any) -> Any:
    """The pipeline with the attempt's file, put there by the vendor's own loader; returns the adapter's name."""
    output = run.lora.work_dir / "output"
    if not hasattr(pipeline, "load_lora_weights"):
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, str(output))
        return "default"
    pipeline.load_lora_weights(str(output))
    return pipeline.get_active_adapters()[0]


def without_lora(pipeline: Any) -> None:
    if hasattr(pipeline, "unload_lora_weights"):
        pipeline.unload_lora_weights()
    else:
        pipeline.transformer = pipeline.transformer.unload()


def test_the_lora_loads_with_the_vendors_loader_learned_and_leaves_no_trace(run: FamilyRun) -> None:
    """Held-out loss falls by a tenth, drawn latents come nearer to the data's, and unloading gives the base again."""
    pipeline = run.vendors_pipeline()
    loss, distance = run.held_out_loss(run.denoiser_of(pipeline)), run.distance_to_data(pipeline)
    plain = run.call(pipeline, [PROMPT], steps=2, guidance=1.0)
    adapter = with_lora(run, pipeline)
    loaded = get_peft_model_state_dict(run.denoiser_of(pipeline), adapter_name=adapter)
    loaded = {name.removeprefix("base_model.model."): tensor for name, tensor in loaded.items()}
    trained = run.family.read_lora(run.lora.work_dir / "output")
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in loaded)
    assert run.held_out_loss(run.denoiser_of(pipeline)) < 0.9 * loss
    assert run.distance_to_data(pipeline) < 0.97 * distance
    without_lora(pipeline)
    assert torch.allclose(run.call(pipeline, [PROMPT], steps=2, guidance=1.0), plain, atol=1e-5)


def test_a_sample_is_what_the_vendors_pipeline_draws_with_the_file(run: FamilyRun) -> None:
    """Same prompt, seed, size, steps and guidance: our validation picture and the user's own differ by rounding."""
    pipeline = run.vendors_pipeline()
    with_lora(run, pipeline)
    theirs = run.call(pipeline, [PROMPT], steps=3, guidance=3.0)[0].permute(1, 2, 0)
    (path,) = (run.lora.work_dir / "samples").glob(f"step-{run.spec.max_train_steps:06d}-*.png")
    ours = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32) / 255)
    assert (ours - theirs).abs().max() < BY_ROUNDING
    (untrained,) = (run.lora.work_dir / "samples").glob("step-000000-*.png")
    assert untrained.read_bytes() != path.read_bytes()


class ExactNetwork:
    """Stands in for a denoiser's `forward`: answers what makes `predict` give `target`, and notes the times it saw."""

    def __init__(self, run: FamilyRun, denoiser: Any) -> None:
        self._run, self._denoiser, self._untaught = run, denoiser, denoiser.forward
        self._answer: Any = None
        self.times: list[Tensor] = []
        denoiser.forward = self

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._answer is None:
            output = self._untaught(*inputs, **named)[0]
            blank = [
                torch.zeros_like(each).requires_grad_() for each in (output if isinstance(output, list) else [output])
            ]
            self._answer = blank if isinstance(output, list) else blank[0]
        time = torch.as_tensor(named["timestep"] if "timestep" in named else inputs[1])
        self.times.append(time.detach().flatten()[:1].double())
        return (self._answer,)

    def aim(self, noisy: Tensor, time: Tensor, conditioning: dict[str, Tensor], target: Tensor) -> None:
        """Answer `target` from now on: predictions are the answer in other order or sign, so a gradient finds it."""
        self._run.family.predict(self._denoiser, noisy, time, conditioning, 1.0).backward(target)
        answer = self._answer
        self._answer = [each.grad for each in answer] if isinstance(answer, list) else answer.grad
        self.times.clear()


def first_noise(run: FamilyRun, pipeline: Any, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the pipeline starts from with seed 5, its first time, and the answer that leads from there to `clean`."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    if run.family.objective(run.model) == "flow":
        return noise, torch.ones(1), noise - clean
    if "set_alpha_to_one" in pipeline.scheduler.config:  # or the last step leaves a little noise
        pipeline.scheduler = pipeline.scheduler.from_config({**pipeline.scheduler.config, "set_alpha_to_one": True})
    pipeline.scheduler.set_timesteps(4)
    time = pipeline.scheduler.timesteps[:1].long()
    share = pipeline.scheduler.alphas_cumprod[time]
    return noise, time, (noise - share.sqrt() * clean) / (1 - share).sqrt()


def test_an_exact_network_makes_the_vendors_pipeline_draw_the_very_picture(run: FamilyRun) -> None:
    """Sign, layout, scale and clock of `predict` and `decode_latents` are those of the vendor's pipeline."""
    pipeline, family = run.vendors_pipeline(), run.family
    exact = ExactNetwork(run, run.denoiser_of(pipeline))
    clean = run.held_out.latents[:1]
    conditioning = {name: tensor[:1] for name, tensor in run.held_out.conditioning.items()}
    noise, time, target = first_noise(run, pipeline, clean)
    exact.aim(noise, time, conditioning, target)
    drawn = run.call(pipeline, [PROMPT], steps=4, guidance=0.0 if run.name == "z_image" else 1.0)
    expected = family.decode_latents(run.vae, clean) / 2 + 0.5
    assert (drawn - expected.clamp(0, 1)).abs().max() < BY_ROUNDING
    theirs = torch.cat(exact.times)
    exact.times.clear()
    for each in pipeline.scheduler.timesteps / (1000 if family.objective(run.model) == "flow" else 1):
        family.predict(run.denoiser_of(pipeline), noise, each.view(1), conditioning, 1.0)
    assert torch.allclose(theirs, torch.cat(exact.times), rtol=1e-5, atol=1e-5)


def test_an_exact_network_has_no_loss(run: FamilyRun) -> None:
    """What the loop asks for and what `predict` gives are one convention."""
    denoiser, family = run.family.load_denoiser(run.model), run.family
    exact, noising = ExactNetwork(run, denoiser), noising_for(family, run.model, run.spec)
    noised = noising.draw(run.held_out.latents, torch.Generator().manual_seed(3))
    untaught = training_loss(family, denoiser, run.held_out, noising, torch.Generator().manual_seed(3), run.spec)
    exact.aim(noised.noisy, noised.time, run.held_out.conditioning, noised.target)
    loss = training_loss(family, denoiser, run.held_out, noising, torch.Generator().manual_seed(3), run.spec)
    assert untaught.item() > 0.5
    assert loss.item() < 1e-10


def test_full_fine_tuning_moves_the_weights_and_loads_with_from_pretrained(run: FamilyRun) -> None:
    changes = {"model_type": "full", "max_train_steps": 4, "learning_rate": 0.002, "validation_disable": True}
    attempt = run.start(f"{run.name}-full", **{**run.config, **changes})
    assert attempt.run() == 0, attempt.data("failed")
    base = run.family.load_denoiser(run.model).state_dict()
    tuned = run.family.denoiser_class.from_pretrained(attempt.work_dir / "output", local_files_only=True)
    assert tuned.state_dict().keys() == base.keys()
    moved = [name for name, tensor in tuned.state_dict().items() if not torch.equal(base[name], tensor)]
    assert len(moved) > len(base) // 2
    assert run.held_out_loss(tuned.eval()) < run.held_out_loss(run.family.load_denoiser(run.model))


def test_half_precision_gives_gradients_and_a_sample(run: FamilyRun) -> None:
    """As on a GPU: a bfloat16 base under autocast, a float32 adapter, recomputed blocks and a float32 VAE."""
    base, family, half = replace(run.model, dtype=torch.bfloat16), run.family, torch.bfloat16
    encoders = family.load_text_encoders(base)
    empty, prompt = (family.encode_text(encoders, [text], run.spec.tokenizer_max_length) for text in ("", PROMPT))
    denoiser = family.load_denoiser(base)
    part = Adapter(family, denoiser, run.spec)
    make_adapters_lean(denoiser)
    denoiser.enable_gradient_checkpointing()
    conditioning = {name: tensor[:2] for name, tensor in run.held_out.conditioning.items()}
    batch = Batch(run.held_out.latents[:2].to(half), placed(conditioning, base.device, half))
    noising = noising_for(family, base, run.spec)
    with torch.autocast("cpu", half):
        loss = training_loss(family, denoiser.train(), batch, noising, torch.Generator().manual_seed(1), run.spec)
    loss.backward()
    assert loss.dtype == torch.float32
    gradients = [parameter.grad for parameter in part.parameters if parameter.grad is not None]
    assert len(gradients) > 0.9 * len(part.parameters)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    request = RenderRequest(prompt, empty, seed=5, width=SIDE, height=SIDE, steps=2, guidance=3.0)
    with torch.autocast("cpu", half):
        picture = family.render(denoiser.eval(), run.vae, base, request)
    assert picture.size == (SIDE, SIDE)


@pytest.mark.parametrize(("name", "model_type"), [("pixart_sigma", "lora"), ("pixart_sigma", "full"), ("sdxl", "lora")])
def test_a_checkpoint_goes_on_bit_for_bit(name: str, model_type: str, run_of: Callable[[str], FamilyRun]) -> None:
    """Files that are named otherwise (PEFT's, a whole denoiser's) and conditioning by picture resume as FLUX does."""
    run = run_of(name)
    changes = {"max_train_steps": 4, "checkpointing_steps": 2, "validation_disable": True, "use_ema": True}
    config = {**run.config, **changes, "model_type": model_type, "snr_gamma": 5, "lora_dropout": 0.1}
    whole = run.start(f"{name}-{model_type}-whole", **config)
    assert whole.run() == 0
    resumed = run.start(f"{name}-{model_type}-resumed", **config)
    shutil.copytree(whole.checkpoint(2), resumed.checkpoint(2))
    assert resumed.run() == 0
    assert list(resumed.losses()) == [3, 4]
    assert resumed.losses().items() <= whole.losses().items()
    one, other = (sorted((attempt.work_dir / "output").rglob("*.safetensors")) for attempt in (whole, resumed))
    assert len(one) == len(other) == 2
    for mine, theirs in zip(one, other, strict=True):
        tensors, others = load_file(mine), load_file(theirs)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)
