"""FLUX, SDXL and SD 1.x adapters: our trainer beside diffusers' own example scripts."""

from pathlib import Path
from typing import Any

import msgspec

from shared.contracts.run import RunSpec
from tests.bench.report import ROOT
from tests.bench.trainer import scripts
from tests.bench.trainer.comparison import Comparison, Side
from tests.bench.trainer.scripts import Scripts
from tests.bench.trainer.sides import Measured, Place

FIXTURE = ROOT / "trainer" / "fixtures" / "tiny-flux-digits"
SCRIPTS = (scripts.FLUX, scripts.SD1X, scripts.SDXL)
_LOSS = "loss on held-out pictures"
_NEVER = 1_000_000
_SIDE = 32
_BATCH = 8
_RANK = 16
_RATE = 0.01
_TEXT_LENGTH = 16
_ONE_PROMPT = "a handwritten digit"
_LORA = "pytorch_lora_weights.safetensors"
_FLUX_TARGETS = [
    "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj",
    "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
]  # fmt: skip
_UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def comparisons(home: Path, found: Scripts) -> list[Comparison]:
    """All whose script is there."""
    flux_script, sd1x_script, sdxl_script = (found.find(name) for name in SCRIPTS)
    made: list[Comparison] = []
    if flux_script is not None:
        made += [
            Comparison(
                name="flux", title="FLUX LoRA, one prompt for all", target=1.5,
                peer_is="train_dreambooth_lora_flux.py", ours=_ours("flux", FIXTURE, _flux(), one_prompt=True),
                peer=_flux_peer(flux_script, "--instance_data_dir", str(home / "pictures-plain"),
                                "--instance_prompt", _ONE_PROMPT, "--cache_latents"),
                judge=("evaluate", "flux", str(FIXTURE), str(home / "held-out.pt"), _ONE_PROMPT),
                loss_is=_LOSS, note=f"script {found.version(scripts.FLUX)}, latents cached by both",
            ),
            Comparison(
                name="flux-captions", title="FLUX LoRA, a caption for each picture", target=1.5,
                peer_is="train_dreambooth_lora_flux.py", ours=_ours("flux", FIXTURE, _flux(), one_prompt=False),
                peer=_flux_peer(flux_script, "--dataset_name", str(home / "pictures-hub"), "--image_column", "image",
                                "--caption_column", "text", "--instance_prompt", _ONE_PROMPT),
                judge=("evaluate", "flux", str(FIXTURE), str(home / "held-out.pt"), ""),
                loss_is=_LOSS,
                note="the script's latent cache mixes up captions from the second epoch on, so it runs without it",
            ),
        ]  # fmt: skip
    for family, title, script in (("sd1x", "SD 1.x LoRA", sd1x_script), ("sdxl", "SDXL LoRA", sdxl_script)):
        if script is not None:
            model = home / "models" / family
            made.append(
                Comparison(
                    name=family, title=title, target=1.5, peer_is=script.name,
                    ours=_ours(family, model, _unet(family), one_prompt=False),
                    peer=_unet_peer(script, model),
                    judge=("evaluate", family, str(model), str(home / "held-out.pt"), ""),
                    loss_is=_LOSS, note="the script has no caches",
                )
            )  # fmt: skip
    return made


def _flux() -> dict[str, Any]:
    """The script's own targets and draw of times."""
    return {
        "--peft_lora_target_modules": _FLUX_TARGETS,
        "--flow_schedule_shift": 0,
        "--flow_use_uniform_schedule": True,
        "--adam_weight_decay": 1e-4,
    }


def _unet(family: str) -> dict[str, Any]:
    """The scripts' own targets. That of SD 1.x clips nothing: it hands the clipping an iterator that is used up."""
    clipping = {"--max_grad_norm": 0} if family == "sd1x" else {}
    return {"--peft_lora_target_modules": _UNET_TARGETS, **clipping}


def _ours(family: str, model: Path, settings: dict[str, Any], *, one_prompt: bool) -> Side:
    def train(place: Place, seed: int, folder: Path) -> tuple[Measured, Path]:
        captions = {"caption_strategy": "textfile"}
        if one_prompt:
            captions = {"caption_strategy": "instanceprompt", "instance_prompt": _ONE_PROMPT}
        pictures = {"id": "digits", "type": "local", "dataset_type": "image", **captions}
        run = run_spec(
            {
                **_common(place, seed),
                "--model_family": family,
                "--pretrained_model_name_or_path": str(model),
                **settings,
            },
            [{**pictures, "instance_data_dir": str(place.home / "pictures")}],
        )
        spec = folder / "spec.json"
        spec.write_bytes(msgspec.json.encode(run))
        measured = place.timed(
            folder / "clock.json", "ours", "trainer.diffusion.session", str(spec), str(folder), place.device
        )
        return measured, folder / "output" / _LORA

    return train


def run_spec(config: dict[str, Any], dataloader: list[dict[str, Any]]) -> RunSpec:
    """An attempt that is run alone."""
    return RunSpec(
        job_id="bench", attempt_id="bench", attempt_number=1, gateway_url=None, config=config, dataloader=dataloader,
        output_prefix="bench",
    )  # fmt: skip


def _common(place: Place, seed: int) -> dict[str, Any]:
    return {
        "--model_type": "lora", "--seed": seed, "--max_train_steps": place.steps, "--train_batch_size": _BATCH,
        "--resolution": _SIDE, "--aspect_bucket_alignment": 8, "--tokenizer_max_length": _TEXT_LENGTH,
        "--lora_rank": _RANK, "--lora_alpha": _RANK, "--lora_dropout": 0.0, "--lora_init_type": "gaussian",
        "--learning_rate": _RATE, "--lr_scheduler": "constant", "--optimizer": "adamw_bf16", "--mixed_precision": "no",
        "--max_grad_norm": 1.0, "--grad_clip_method": "norm", "--caption_dropout_probability": 0.0,
        "--gradient_checkpointing": False, "--checkpointing_steps": _NEVER, "--validation_steps": _NEVER,
        "--validation_disable": True, "--disable_benchmark": True, "--report_to": "none",
    }  # fmt: skip


def _flux_peer(script: Path, *data: str) -> Side:
    def train(place: Place, seed: int, folder: Path) -> tuple[Measured, Path]:
        options = [
            "--pretrained_model_name_or_path", str(FIXTURE), "--lora_alpha", str(_RANK), "--optimizer", "AdamW",
            "--max_sequence_length", str(_TEXT_LENGTH), "--guidance_scale", "1", "--weighting_scheme", "none",
        ]  # fmt: skip
        return _script(script, place, seed, folder, [*options, *data])

    return train


def _unet_peer(script: Path, model: Path) -> Side:
    def train(place: Place, seed: int, folder: Path) -> tuple[Measured, Path]:
        data = ["--train_data_dir", str(place.home / "pictures-hub"), "--image_column", "image"]
        options = ["--pretrained_model_name_or_path", str(model), *data, "--caption_column", "text"]
        return _script(script, place, seed, folder, options)

    return train


def _script(script: Path, place: Place, seed: int, folder: Path, options: list[str]) -> tuple[Measured, Path]:
    common = {
        "--resolution": _SIDE, "--train_batch_size": _BATCH, "--max_train_steps": place.steps, "--rank": _RANK,
        "--learning_rate": _RATE, "--lr_scheduler": "constant", "--lr_warmup_steps": 0, "--mixed_precision": "no",
        "--max_grad_norm": 1.0, "--seed": seed, "--checkpointing_steps": _NEVER, "--output_dir": folder / "output",
    }  # fmt: skip
    arguments = [str(part) for pair in common.items() for part in pair]
    measured = place.timed(folder / "clock.json", "script", str(script), *options, *arguments)
    return measured, folder / "output" / _LORA
