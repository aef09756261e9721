"""Ollama: upload the adapter's files by digest, create a model from a base that is there, and read how it went.

Ollama converts safetensors adapters for two of its architectures only, and reports what goes wrong after the first
line inside an answer of status 200, so every line is read and `success` is required.
"""

import http
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx

from trainer.failures import AttemptFailed
from trainer.files import sha256_of
from trainer.serve.adapter import Adapter
from trainer.serve.http_server import ModelServer, told_by

TITLE = "Ollama"
CONVERTED = {"llama": "Llama and Mistral", "gemma2": "Gemma 2"}
"""Architectures, in GGUF's words, whose safetensors adapters Ollama converts."""
GGUF_ADVICE = (
    "Convert the adapter with llama.cpp's convert_lora_to_gguf.py and register the file with --gguf FILE; or merge it "
    "into the base (PEFT's merge_and_unload), import the whole model with `ollama create`, and serve that."
)
_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>\d+)\."
    r"(?:self_attn\.(?P<attention>[qkvo])_proj|mlp\.(?:gate|up|down)_proj)\.lora_(?P<side>[AB])\.weight"
)
"""The tensors that Ollama knows by another name in GGUF; others would end up in the model under a name nobody reads."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(:[A-Za-z0-9][A-Za-z0-9._-]*)?")


class Ollama(ModelServer):
    """Ollama's own routes."""

    def __init__(self, url: str, key: str = "") -> None:
        super().__init__(TITLE, url, key)

    def show(self, model: str) -> dict[str, Any] | None:
        """What Ollama knows of a model; None when it has none of that name."""
        response = self.ask("POST", "/api/show", json={"model": model})
        if response.status_code == http.HTTPStatus.NOT_FOUND:
            return None
        return self._members(response)

    def names(self) -> list[str]:
        """The models that are there."""
        listed = cast("list[dict[str, Any]]", self._members(self.ask("GET", "/api/tags")).get("models") or [])
        return [str(model.get("name")) for model in listed]

    def upload(self, path: Path, digest: str) -> bool:
        """Puts one file there under its digest; False if it was there."""
        place = f"/api/blobs/{digest}"
        if self.ask("HEAD", place).is_success:
            return False
        with path.open("rb") as content:
            size = str(path.stat().st_size)
            response = self.ask("POST", place, content=content, headers={"Content-Length": size})
        if response.is_success:
            return True
        raise self.odd(response)

    def create(self, body: dict[str, Any], progress: Callable[[str], None]) -> None:
        """Makes the model and returns when Ollama has said `success`.

        Raises:
            AttemptFailed: bad_config, with Ollama's reason, wherever in the answer it stood.
        """
        last = ""
        with self.reachable(), self.http.stream("POST", "/api/create", json=body) as response:
            self.checked(response)
            if not response.is_success:
                response.read()
                raise _refused(told_by(response))
            for line in response.iter_lines():
                if not line.strip():
                    continue
                told = _object(line, response)
                if "error" in told:
                    raise _refused(str(told["error"]))
                last = str(told.get("status", ""))
                progress(last)
        if last != "success":
            message = f"Ollama ended its answer at {last or 'nothing'!r}, without success"
            raise AttemptFailed("unreachable", message, "Look into Ollama's log, then run this again.")

    def delete(self, model: str) -> bool:
        """Takes a model away; False if it was not there."""
        response = self.ask("DELETE", "/api/delete", json={"model": model})
        if response.status_code == http.HTTPStatus.NOT_FOUND:
            return False
        if response.is_success:
            return True
        raise self.odd(response)

    def _members(self, response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:
            raise self.odd(response)
        return _object(response.text, response)


def register(
    ollama: Ollama, adapter: Adapter, name: str, base: str, progress: Callable[[str], None], gguf: Path | None = None
) -> dict[str, Any]:
    """Makes the model `name` of a base that Ollama has and the adapter, or its conversion to GGUF.

    Raises:
        AttemptFailed: bad_config for what Ollama would refuse or get wrong, with the way out.
    """
    check_name(name)
    if _whole(name) == _whole(base):
        raise AttemptFailed("bad_config", f"{name} is the base itself", "Choose another --name.")
    info = _base_info(ollama, base)
    if gguf is None:
        _check_converted(adapter, info, base)
    _check_not_of_others(ollama, name, base)
    files = {adapter.folder / file_name: digest for file_name, digest in adapter.digests.items()}
    if gguf is not None:
        files = {gguf: _gguf_digest(gguf)}
    for path, digest in files.items():
        progress(f"uploading {path.name}")
        ollama.upload(path, f"sha256:{digest}")
    adapters = {path.name: f"sha256:{digest}" for path, digest in files.items()}
    ollama.create({"model": name, "from": base, "adapters": adapters, "stream": True}, progress)
    if ollama.show(name) is None:
        message = f"Ollama said success, but has no model {name}"
        raise AttemptFailed("unreachable", message, "Look into Ollama's log, then run this again.")
    return {"model": name, "base": base, "url": ollama.url, "adapters": adapters}


def check_name(name: str) -> None:
    """Raises AttemptFailed for a name that Ollama does not take: [namespace/]model[:tag]."""
    if _NAME.fullmatch(name) is None:
        advice = "Use letters, digits, '.', '_' and '-', as in me/model:tag."
        raise AttemptFailed("bad_config", f"{name!r} is no model name for Ollama", advice)


def _base_info(ollama: Ollama, base: str) -> dict[str, Any]:
    """The base's `model_info`. A base that is not there would be pulled by `create`, which nobody asked for."""
    shown = ollama.show(base)
    if shown is None:
        known = ", ".join(ollama.names()[:20]) or "none"
        advice = f"`ollama pull {base}`, or name with --from one that is there: {known}."
        raise AttemptFailed("bad_config", f"Ollama has no model {base}", advice)
    return cast("dict[str, Any]", shown.get("model_info") or {})


def _check_converted(adapter: Adapter, info: dict[str, Any], base: str) -> None:
    """Refuses what Ollama cannot convert, or would convert to another model than was trained."""
    architecture = str(info.get("general.architecture", ""))
    if architecture not in CONVERTED:
        known = " and ".join(f"{title} ({word})" for word, title in CONVERTED.items())
        message = f"Ollama converts safetensors adapters of {known} alone; {base} is {architecture or 'unknown'}"
        raise AttemptFailed("bad_config", message, GGUF_ADVICE)
    config = adapter.config
    unsupported = {
        f"its type is {config.peft_type}": config.peft_type != "LORA",
        "it uses DoRA": config.use_dora,
        "its scale is rank-stabilised (use_rslora)": config.use_rslora,
        "its alpha differs by layer (alpha_pattern)": bool(config.alpha_pattern),
        "it trains whole modules (modules_to_save)": bool(config.modules_to_save),
        "it trains biases": config.bias != "none",
    }
    reasons = [reason for reason, holds in unsupported.items() if holds]
    strange = [tensor for tensor in adapter.shapes if _TENSOR.fullmatch(tensor) is None]
    if strange:
        reasons.append(f"it adapts {strange[0]}, which Ollama has no name for")
    if reasons:
        raise AttemptFailed("bad_config", f"Ollama cannot convert this adapter: {'; '.join(reasons)}", GGUF_ADVICE)
    _check_same_base(adapter, info, architecture, base)


def _check_same_base(adapter: Adapter, info: dict[str, Any], architecture: str, base: str) -> None:
    """Compares the adapter's widths and layers with those of the base, for names differ between the two worlds."""
    width, layers = info.get(f"{architecture}.embedding_length"), info.get(f"{architecture}.block_count")
    for tensor, shape in adapter.shapes.items():
        found = _TENSOR.fullmatch(tensor)
        if found is None:
            continue
        takes_width = found["side"] == "A" and found["attention"] in ("q", "k", "v")
        fits = not takes_width or width is None or shape[-1] == width
        if fits and (layers is None or int(found["layer"]) < int(layers)):
            continue
        trained_on = adapter.config.base_model_name_or_path or "another model"
        message = f"{base} is not what this adapter was trained on ({trained_on}): {tensor} of shape {list(shape)} "
        message += f"does not fit {layers} layers of width {width}"
        raise AttemptFailed("bad_config", message, "Name with --from the model in Ollama that is the same base.")


def _check_not_of_others(ollama: Ollama, name: str, base: str) -> None:
    """Replacing is for a model of the same base; any other of that name is somebody's."""
    shown = ollama.show(name)
    if shown is None:
        return
    parent = str(cast("dict[str, Any]", shown.get("details") or {}).get("parent_model") or "")
    if _whole(parent) != _whole(base):
        message = f"Ollama has a model {name} already, and it was not made from {base}"
        raise AttemptFailed("bad_config", message, "Choose another --name, or take it away with --remove.")


def _gguf_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic == b"GGUF":
            return sha256_of(path)
    except OSError as error:
        raise AttemptFailed("bad_data", f"{path} cannot be read: {error.strerror}", GGUF_ADVICE) from error
    raise AttemptFailed("bad_data", f"{path} is no GGUF file", GGUF_ADVICE)


def _whole(name: str) -> str:
    """The name with its tag, as Ollama compares names."""
    return (name if ":" in name else f"{name}:latest").lower() if name else ""


def _refused(reason: str) -> AttemptFailed:
    return AttemptFailed("bad_config", f"Ollama could not make the model: {reason}", GGUF_ADVICE)


def _object(text: str, response: httpx.Response) -> dict[str, Any]:
    try:
        told: object = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        message = f"what answers at {response.request.url.copy_with(path='/')} is not Ollama: {text[:200]!r}"
        raise AttemptFailed("unreachable", message, "Correct the address.")
    return cast("dict[str, Any]", told)
