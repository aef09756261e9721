# pyright: basic
"""`python -m trainer render`: pictures of a base model with and without a finished LoRA, by its public pipeline."""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft import PeftModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import __version__
from trainer.entry.adapter_weight import scale_adapter
from trainer.entry.lines import say
from trainer.failures import AttemptFailed
from trainer.families.base_model import locate
from trainer.families.libraries import quieten_libraries
from trainer.files import sha256_of
from trainer.train.precision import choose_precision

_ADAPTER = "tuned"
_STEPS = "num_inference_steps"
_SHORT_HASH = 10


@dataclass(frozen=True)
class Wish:
    """What to draw. Sizes in pixels; None leaves a value to the pipeline. `facts` go into the PNG as they are."""

    base: str
    prompt: str
    output: Path
    lora: Path | None = None
    weight: float = 1.0
    with_lora: bool = True
    without_lora: bool = False
    seed: int = 0
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    text_length: int | None = None
    revision: str | None = None
    variant: str | None = None
    mixed_precision: str = "bf16"
    device: str = "auto"
    facts: dict[str, str] = field(default_factory=dict)


def render(wish: Wish) -> None:
    """Draws `count` pictures of the seeds from `seed` on and says a `picture` line for each.

    The pictures without the LoRA come first, from a pipeline that never saw it.

    Raises:
        AttemptFailed: unreachable when there is no base, bad_config or bad_data for what cannot be drawn.
    """
    quieten_libraries()
    precision = choose_precision(wish.device, wish.mixed_precision)
    if precision.device.type == "cpu":
        torch.set_num_threads(1)
    folder = locate(wish.base, wish.revision)
    say("stage", text=f"loading {wish.base}")
    pipeline = _pipeline(folder, precision.dtype, wish)
    if precision.device.type == "cuda":
        pipeline.enable_model_cpu_offload()  # text encoders leave the card before the picture is drawn
    sides = [with_lora for with_lora, wanted in ((False, wish.without_lora), (True, wish.with_lora)) if wanted]
    drawing = _Drawing(pipeline, wish, total=len(sides) * wish.count)
    for with_lora in sides:
        if with_lora:
            _load_lora(pipeline, wish)
        for index in range(wish.count):
            drawing.draw(wish.seed + index, with_lora=with_lora)


class _Drawing:
    """Draws one picture after the other and says how far all of them are."""

    def __init__(self, pipeline: Any, wish: Wish, total: int) -> None:
        self._pipeline, self._wish, self._total, self._done = pipeline, wish, total, 0
        self._lora_sha256 = sha256_of(wish.lora) if wish.lora is not None and wish.with_lora else None
        accepted = inspect.signature(pipeline.__call__).parameters
        # Qwen-Image calls guidance otherwise, and needs a negative prompt for it: its guidance_scale, by default None,
        # is for distilled models.
        is_true = "guidance_scale" in accepted and accepted["guidance_scale"].default is None
        self._guidance_name = "true_cfg_scale" if is_true else "guidance_scale"
        wanted = {
            _STEPS: wish.steps,
            self._guidance_name: wish.guidance,
            "negative_prompt": " " if is_true else None,
            "width": wish.width,
            "height": wish.height,
            "max_sequence_length": wish.text_length,
            "use_resolution_binning": False,  # the size is drawn as asked, not the nearest of a table
            "text_encoder_out_layers": _layers_read(pipeline) if "text_encoder_out_layers" in accepted else None,
            "callback_on_step_end": self._say_step,
        }
        self._given = {name: value for name, value in wanted.items() if value is not None and name in accepted}
        defaults = {name: accepted[name].default for name in (_STEPS, self._guidance_name) if name in accepted}
        self._settings = {**defaults, **self._given}

    def draw(self, seed: int, *, with_lora: bool) -> None:
        """One picture, written and said."""
        picture = self._picture(seed)
        path = _numbered(self._wish, seed, with_lora=with_lora)
        path.parent.mkdir(parents=True, exist_ok=True)
        lora_sha256 = self._lora_sha256 if with_lora else None
        facts = {
            "prompt": self._wish.prompt,
            "base": self._wish.base,
            "seed": seed,
            "steps": self._settings.get(_STEPS),
            "guidance": self._settings.get(self._guidance_name),
            "width": picture.width,
            "height": picture.height,
            "lora_sha256": lora_sha256,
            "lora_weight": self._wish.weight if with_lora else None,
        }
        picture.save(path, pnginfo=_png_info(self._wish, facts))
        self._done += 1
        say("picture", path=str(path), with_lora=with_lora, sha256=sha256_of(path), **facts)

    def _picture(self, seed: int) -> Image.Image:
        try:
            with torch.no_grad():
                made = self._pipeline(
                    prompt=self._wish.prompt, generator=torch.Generator().manual_seed(seed), **self._given
                )
        except ValueError as error:
            advice = "Change --width, --height, --steps or --guidance to what this model takes."
            raise AttemptFailed("bad_config", f"the model cannot draw this: {error}", advice) from error
        return made.images[0]

    def _say_step(self, pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        say("progress", done=self._done + (step + 1) / pipeline.num_timesteps, total=self._total)
        return tensors


def _layers_read(pipeline: Any) -> tuple[int, int, int]:
    """FLUX.2 reads its text encoder at a quarter, half and three quarters of its depth, as in training."""
    depth: int = pipeline.text_encoder.config.num_hidden_layers
    return depth // 4, depth // 2, 3 * depth // 4


def _pipeline(folder: Path, dtype: torch.dtype, wish: Wish) -> Any:
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, local_files_only=True, variant=wish.variant
        )
    except (OSError, ValueError) as error:
        advice = "The base must be a whole diffusers folder: model_index.json and every part that it names."
        raise AttemptFailed("bad_config", f"{wish.base} cannot be loaded: {error}", advice) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_lora(pipeline: Any, wish: Wish) -> None:
    """Puts the LoRA in at the wanted weight; a file that changes nothing in this base is an error."""
    if wish.lora is None:
        raise AttemptFailed("bad_config", "there is no LoRA", "Name its file with --lora.")
    advice = "Is this the base that the LoRA was trained on? --base names another."
    try:
        if not hasattr(pipeline, "load_lora_weights"):
            pipeline.transformer = _with_peft(pipeline.transformer, wish.lora.parent, wish.weight)
            return
        pipeline.load_lora_weights(str(wish.lora), adapter_name=_ADAPTER)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        message = f"{wish.lora.name} does not fit {wish.base}: {str(error).splitlines()[0]}"
        raise AttemptFailed("bad_data", message, advice) from error
    if _ADAPTER not in pipeline.get_active_adapters():
        message = f"{wish.lora.name} has no weights for any layer of {wish.base}"
        raise AttemptFailed("bad_data", message, advice)
    pipeline.set_adapters([_ADAPTER], [wish.weight])


def _with_peft(network: Any, folder: Path, weight: float) -> Any:
    """PixArt's pipeline has no LoRA loader; its LoRAs are PEFT folders."""
    adapted = PeftModel.from_pretrained(network, folder, adapter_name=_ADAPTER).eval()
    scale_adapter(adapted, weight)
    return adapted


def _numbered(wish: Wish, seed: int, *, with_lora: bool) -> Path:
    """The output path; with its seed when there are several, with `-base` when both sides are drawn."""
    several = f"-{seed}" if wish.count > 1 else ""
    side = "-base" if wish.without_lora and wish.with_lora and not with_lora else ""
    return wish.output.with_name(f"{wish.output.stem}{several}{side}{wish.output.suffix or '.png'}")


def _png_info(wish: Wish, facts: dict[str, Any]) -> PngInfo:
    """`tunewright` holds everything as JSON; `parameters` what image tools commonly read."""
    settings = {
        "Steps": facts["steps"],
        "CFG scale": facts["guidance"],
        "Seed": facts["seed"],
        "Size": f"{facts['width']}x{facts['height']}",
        "Model": Path(wish.base).name,
    }
    if facts["lora_sha256"] and wish.lora is not None:
        settings["Lora hashes"] = f'"{wish.lora.stem}: {facts["lora_sha256"][:_SHORT_HASH]}"'
    listed = ", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)
    info = PngInfo()
    info.add_itxt("parameters", f"{wish.prompt}\n{listed}")
    told = {**facts, **wish.facts, "trainer_version": __version__}
    info.add_itxt("tunewright", json.dumps(told, ensure_ascii=False))
    return info
