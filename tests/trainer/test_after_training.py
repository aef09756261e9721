# pyright: basic
"""`render` and `generate`: a finished LoRA at work, beside its base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import FIXTURE
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open

from tests.support.tiny_llm import write_adapter, write_tiny_llm
from trainer.entry.cli import main
from trainer.files import sha256_of

# transformers 5.23 names a property of its own that PEFT 0.21 still asks for.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROMPT = "a handwritten digit seven, with 'quotes' and é"
Say = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """`python -m trainer ARGUMENTS` in this process: its exit code, and its lines but for stages and progress."""

    def run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return code, [line for line in lines if line["type"] not in {"stage", "progress"}]

    return run


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with weights of chance, saved by diffusers itself."""
    denoiser: Any = FluxTransformer2DModel.from_pretrained(FIXTURE, subfolder="transformer", dtype=torch.float32)
    torch.manual_seed(3)
    denoiser.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    tensors: Any = get_peft_model_state_dict(denoiser)
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=tensors)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny-base")


@pytest.fixture(scope="session")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), base=str(model))


def render_arguments(folder: Path, **more: object) -> list[str]:
    options: dict[str, object] = {
        "base": FIXTURE, "family": "flux", "prompt": PROMPT, "steps": 2, "width": 32, "height": 32,
        "text-length": 16, "mixed-precision": "no", "output": folder / "made.png", **more,
    }  # fmt: skip
    return ["render", *(f"--{name}={value}" for name, value in options.items())]


def pixels(picture: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(picture["path"]).convert("RGB"), dtype=np.int16)


def test_pictures_with_the_lora_lie_beside_those_of_the_base(say: Say, lora: Path, tmp_path: Path) -> None:
    code, pictures = say(*render_arguments(tmp_path, lora=lora, sides="both", count=2, seed=5))
    assert code == 0
    named = {(Path(each["path"]).name, each["with_lora"], each["seed"]) for each in pictures}
    assert named == {
        ("made-5-base.png", False, 5), ("made-6-base.png", False, 6), ("made-5.png", True, 5), ("made-6.png", True, 6),
    }  # fmt: skip
    drawn = {(each["with_lora"], each["seed"]): pixels(each) for each in pictures}
    assert np.abs(drawn[True, 5] - drawn[False, 5]).mean() > 1
    assert np.abs(drawn[True, 5] - drawn[True, 6]).mean() > 1


def test_the_same_seed_draws_the_same_and_no_weight_is_the_base(say: Say, lora: Path, tmp_path: Path) -> None:
    _, (first,) = say(*render_arguments(tmp_path / "a", lora=lora, seed=5))
    _, (again,) = say(*render_arguments(tmp_path / "b", lora=lora, seed=5))
    _, (nothing,) = say(*render_arguments(tmp_path / "c", lora=lora, seed=5, weight=0))
    _, (base,) = say(*render_arguments(tmp_path / "d", seed=5, sides="without"))
    assert np.array_equal(pixels(first), pixels(again))
    assert np.abs(pixels(nothing) - pixels(base)).max() <= 1


def test_a_png_says_how_it_was_made(say: Say, lora: Path, tmp_path: Path) -> None:
    _, (made,) = say(*render_arguments(tmp_path, lora=lora, seed=5, weight=0.5, fact="job_id=j1", guidance=2.5))
    text = Image.open(made["path"]).text  # pyright: ignore[reportAttributeAccessIssue] -- PNGs have it
    told = json.loads(text["tunewright"])
    wanted = {
        "prompt": PROMPT, "seed": 5, "steps": 2, "guidance": 2.5, "width": 32, "height": 32, "job_id": "j1",
        "lora_sha256": sha256_of(lora), "lora_weight": 0.5, "base": str(FIXTURE),
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted
    assert text["parameters"].startswith(f"{PROMPT}\nSteps: 2, CFG scale: 2.5, Seed: 5, Size: 32x32")
    assert sha256_of(lora)[:10] in text["parameters"]
    assert made["sha256"] == sha256_of(Path(made["path"]))


def test_a_lora_for_another_network_is_refused(say: Say, adapter: Path, tmp_path: Path) -> None:
    code, (failed,) = say(*render_arguments(tmp_path, lora=adapter / "adapter_model.safetensors"))
    assert (code, failed["kind"]) == (65, "bad_data")
    assert "adapter_model.safetensors" in failed["message"]
    assert "--base" in failed["advice"]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"family": "fluks"}, 64, "the model family fluks is not known"),
        ({"base": "/nowhere/at/all"}, 69, "no diffusers model lies in /nowhere/at/all"),
    ],
)
def test_what_is_not_there_is_named(
    say: Say, lora: Path, tmp_path: Path, changes: dict[str, object], code: int, said: str
) -> None:
    ended, (failed,) = say(*render_arguments(tmp_path, lora=lora, **changes))
    assert (ended, failed["type"]) == (code, "failed")
    assert said in failed["message"]
    assert failed["advice"]


def ask_arguments(model: Path, adapter: Path, **more: object) -> list[str]:
    options: dict[str, object] = {
        "base": model, "adapter": adapter, "prompt": "who?", "max-new-tokens": 8, "mixed-precision": "no", **more,
    }  # fmt: skip
    return ["generate", *(f"--{name}={value}" for name, value in options.items())]


def test_an_adapter_answers_otherwise_than_its_base(say: Say, model: Path, adapter: Path) -> None:
    code, (base, tuned) = say(*ask_arguments(model, adapter, sides="both"))
    assert code == 0
    assert [base["with_lora"], tuned["with_lora"]] == [False, True]
    assert base["text"] != tuned["text"]
    _, (nothing,) = say(*ask_arguments(model, adapter, weight=0))
    assert nothing["text"] == base["text"]


def test_chance_is_the_seeds(say: Say, model: Path, adapter: Path) -> None:
    _, answers = say(*ask_arguments(model, adapter, temperature=2.0, seed=1, count=2))
    _, (again,) = say(*ask_arguments(model, adapter, temperature=2.0, seed=2))
    assert [answer["seed"] for answer in answers] == [1, 2]
    assert answers[0]["text"] != answers[1]["text"] == again["text"]


def test_the_chat_template_is_used_unless_the_prompt_is_raw(say: Say, model: Path, adapter: Path) -> None:
    _, (chat,) = say(*ask_arguments(model, adapter))
    _, (raw,) = say(*ask_arguments(model, adapter), "--raw")
    _, (written,) = say(*ask_arguments(model, adapter, prompt="user: who?\nassistant:"), "--raw")
    assert raw["text"] != chat["text"] == written["text"]
    code, (failed,) = say(*ask_arguments(model, adapter, system="be short"), "--raw")
    assert (code, failed["kind"]) == (64, "bad_config")


def test_an_adapter_of_another_base_is_refused(say: Say, model: Path, tmp_path: Path) -> None:
    alien = write_adapter(tmp_path / "alien", base="x", targets=["q_proj"], rank=8)
    config = json.loads((alien / "adapter_config.json").read_text()) | {"r": 4}
    (alien / "adapter_config.json").write_text(json.dumps(config))
    code, (failed,) = say(*ask_arguments(model, alien))
    assert (code, failed["kind"]) == (65, "bad_data")
    assert "does not fit" in failed["message"]
    code, (failed,) = say(*ask_arguments(tmp_path / "nowhere", alien))
    assert (code, failed["kind"]) == (69, "unreachable")


def test_the_adapters_that_serving_is_tested_with_are_as_peft_saves_them(
    model: Path, adapter: Path, tmp_path: Path
) -> None:
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
    peft.save_pretrained(str(tmp_path))
    with (
        safe_open(adapter / "adapter_model.safetensors", "pt") as written,
        safe_open(tmp_path / "adapter_model.safetensors", "pt") as saved,
    ):
        names = sorted(saved.keys())
        assert sorted(written.keys()) == names
        assert all(torch.equal(written.get_tensor(name), saved.get_tensor(name)) for name in names)
