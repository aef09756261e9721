"""Replicate: `predict()` of a Cog container: draw with a trained LoRA, or let a trained language model answer.

It runs `python -m trainer render` and `generate` as children, so that a prediction ends with all its memory given back.
The signature with Cog's types is in `deploy/replicate/predict.py`.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.contracts.trainer_environment import trainer_environment
from trainer.archives import is_archive, unpack_safely
from trainer.entry.child import CODE_ROOT
from trainer.entry.settings import EntrySettings
from trainer.failures import AttemptFailed

_ADAPTER_CONFIG = "adapter_config.json"
_END_S = 10.0


class PredictionFailed(Exception):  # noqa: N818 -- an answer, not a fault
    """Nothing was made; Cog shows the text as the prediction's `error`."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for; 0 and empty leave a value to the model. `lora` is a tar of `train`, or the weights alone."""

    prompt: str
    lora: Path
    base_model: str = ""
    seed: int = 0
    count: int = 1
    weight: float = 1.0
    steps: int = 0
    guidance: float = 0.0
    width: int = 0
    height: int = 0
    max_new_tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True)
class _Tuned:
    """What lies in the LoRA's archive."""

    path: Path
    is_language_model: bool
    base_model: str


def predict(wish: Wish, environ: Mapping[str, str], folder: Path | None = None) -> list[Path]:
    """Pictures, or texts as files. They lie in `folder`, or in a temporary one that the container cleans up."""
    settings = EntrySettings.from_environ(environ)
    folder = folder or Path(tempfile.mkdtemp(prefix="tunewright-predict-"))
    try:
        tuned = _tuned(wish, folder)
    except AttemptFailed as failure:
        raise PredictionFailed(f"{failure.kind}: {failure.message}. {failure.advice}") from failure
    command = [settings.trainer_python, "-m", "trainer", *_arguments(wish, tuned, folder, settings.device)]
    said = _run(command, environ)
    if tuned.is_language_model:
        return [_written(folder / f"answer-{number}.txt", line) for number, line in enumerate(said)]
    return [Path(line["path"]) for line in said]


def _tuned(wish: Wish, folder: Path) -> _Tuned:
    if not is_archive(wish.lora):
        base = wish.base_model
        unpacked, weights = wish.lora.parent, [wish.lora]
    else:
        unpacked = folder / "lora"
        unpack_safely(wish.lora, unpacked)
        base = wish.base_model or _base_of(unpacked)
        weights = sorted(unpacked.glob("*.safetensors"))
    if not base:
        raise AttemptFailed("bad_config", "the LoRA does not say its base", "Name it with base_model.")
    if _is_language_model(unpacked / _ADAPTER_CONFIG):
        return _Tuned(unpacked, is_language_model=True, base_model=base)
    if len(weights) != 1:
        message = f"the archive holds {len(weights)} weight files at its top"
        raise AttemptFailed("bad_data", message, "Give the tar that train made, or the .safetensors file.")
    return _Tuned(weights[0], is_language_model=False, base_model=base)


def _is_language_model(adapter_config: Path) -> bool:
    """PEFT says what an adapter is for; one for pictures has no task."""
    if not adapter_config.is_file():
        return False
    return json.loads(adapter_config.read_text(encoding="utf-8")).get("task_type") == "CAUSAL_LM"


def _base_of(unpacked: Path) -> str:
    manifest = unpacked / "manifest.json"
    if not manifest.is_file():
        return ""
    return str(json.loads(manifest.read_text(encoding="utf-8")).get("base_model") or "")


def _arguments(wish: Wish, tuned: _Tuned, folder: Path, device: str) -> list[str]:
    shared = {
        "--base": tuned.base_model, "--prompt": wish.prompt, "--seed": wish.seed, "--count": wish.count,
        "--weight": wish.weight, "--device": device,
    }  # fmt: skip
    if tuned.is_language_model:
        own: dict[str, Any] = {
            "--adapter": tuned.path, "--max-new-tokens": wish.max_new_tokens, "--temperature": wish.temperature
        }  # fmt: skip
        return ["generate", *_flat({**shared, **own})]
    chosen = {"--steps": wish.steps, "--guidance": wish.guidance, "--width": wish.width, "--height": wish.height}
    own = {"--lora": tuned.path, "--output": folder / "picture.png"}
    return ["render", *_flat({**shared, **own, **{name: value for name, value in chosen.items() if value}})]


def _flat(options: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items()]


def _run(command: list[str], environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the child said of what it made; stopped on the way out if a cancellation comes."""
    made: list[dict[str, Any]] = []
    failed = "the renderer ended without a word"
    process = subprocess.Popen(
        command, cwd=CODE_ROOT, env=trainer_environment(environ), stdout=subprocess.PIPE, text=True
    )
    try:
        for text in process.stdout or ():
            line: dict[str, Any] = json.loads(text)
            print(text, end="", flush=True)  # noqa: T201 -- Cog's log
            if line["type"] in {"picture", "text"}:
                made.append(line)
            elif line["type"] == "failed":
                failed = f"{line['kind']}: {line['message']}. {line['advice']}"
        if process.wait() != 0:
            raise PredictionFailed(failed)
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return made


def _written(path: Path, line: dict[str, Any]) -> Path:
    path.write_text(str(line["text"]), encoding="utf-8")
    return path
