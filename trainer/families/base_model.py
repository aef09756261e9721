# pyright: basic
"""Find the base model: a local diffusers folder, or a hub snapshot (from disk only when HF_HUB_OFFLINE is set)."""

import hashlib
import json
import shutil
from pathlib import Path

from trainer.failures import AttemptFailed
from trainer.files import sha256_of

_WHOLE_HASH_BELOW_BYTES = 64 * 1024 * 1024
_SAMPLE_BYTES = 1024 * 1024
_ADVICE = (
    "Give pretrained_model_name_or_path as a folder on the training machine, or as a hub id that the machine can "
    "download (set HF_TOKEN for gated models, and unset HF_HUB_OFFLINE)."
)
# Only diffusers-layout parts: single-file checkpoints in the same repository would double the download.
_PARTS = [
    "model_index.json",
    "README.md",
    "scheduler/*",
    "text_encoder*/*",
    "tokenizer*/*",
    "transformer/*",
    "unet/*",
    "vae/*",
]
_T5_CLASSES = frozenset({"T5EncoderModel", "UMT5EncoderModel", "MT5EncoderModel"})
_OTHER_PROGRAMS = ["*.onnx", "*.onnx_data", "*.msgpack", "*.ckpt", "*.xml", "*.pb"]


def locate(name_or_path: str, revision: str | None) -> Path:
    """The folder that holds the base model. Raises AttemptFailed(unreachable) with advice when there is none."""
    folder = Path(name_or_path).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or folder.is_absolute() or name_or_path.startswith("."):
        raise AttemptFailed("unreachable", f"no diffusers model lies in {name_or_path}", _ADVICE)
    return snapshot(name_or_path, revision, _PARTS, _ADVICE)


def with_other_parts(folder: Path, parts: dict[str, str], into: Path) -> Path:
    """The base with some parts of other models in their place; `folder` itself when `parts` is empty.

    `parts` maps unet, transformer, vae or t5 to a folder or hub id that holds that part, or is it. Nothing is copied:
    `into` gets links. Raises AttemptFailed for a part that this base does not have (bad_config) or that is not found.
    """
    if not parts:
        return folder
    replaced = {_name_in(folder, kind): (kind, place) for kind, place in parts.items()}
    found = {name: _part_folder(place, name, kind) for name, (kind, place) in replaced.items()}
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for path in folder.iterdir():
        (into / path.name).symlink_to(found.get(path.name, path).resolve())
    return into


def _name_in(folder: Path, kind: str) -> str:
    """The name that a base's index gives to a kind of part; T5 has another one in each family."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, value in index.items():
        is_t5 = isinstance(value, list) and str(value[-1]) in _T5_CLASSES
        if (kind == "t5" and is_t5) or (kind == name and isinstance(value, list)):
            return name
    message = f"pretrained_{kind}_model_name_or_path is set, and this base has no {kind}"
    raise AttemptFailed("bad_config", message, "Remove the key, or choose the base that it belongs to.")


def _part_folder(place: str, name: str, kind: str) -> Path:
    folder = Path(place).expanduser()
    if not folder.exists() and not folder.is_absolute() and not place.startswith("."):
        wanted = [f"{name}/*", "config.json", "*.safetensors", "*.safetensors.index.json"]
        folder = snapshot(place, None, wanted, _ADVICE)
    for candidate in (folder / name, folder):
        if (candidate / "config.json").is_file():
            return candidate
    message = f"pretrained_{kind}_model_name_or_path: no {name} lies in {place}"
    raise AttemptFailed("unreachable", message, "Give a folder or hub id that holds the part, or is it.")


def snapshot(name: str, revision: str | None, parts: list[str], advice: str) -> Path:
    """The folder of a hub model, downloaded as far as `parts` match. Raises AttemptFailed(unreachable)."""
    # Imported here: the hub client is only needed for a base that is not a local folder.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=parts, ignore_patterns=_OTHER_PROGRAMS))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AttemptFailed("unreachable", f"the base model {name} was not found: {reason}", advice) from error


def parts_of(folder: Path) -> list[str]:
    """The names of all parts of a base's pipeline."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return [name for name, value in index.items() if isinstance(value, list)]


def text_parts(folder: Path) -> tuple[str, ...]:
    """The parts that make embeddings of prompts: text encoders and tokenizers."""
    return tuple(name for name in parts_of(folder) if name.startswith(("text_encoder", "tokenizer")))


def fingerprint(folder: Path, parts: tuple[str, ...]) -> str:
    """A hash of the named parts of a model; of large files the size, head and tail stand for the whole."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(folder).as_posix()}\0{content_id(path)}\n".encode())
    return digest.hexdigest()


def content_id(path: Path) -> str:
    """A hash of a file; of a large one the size, head and tail stand for the whole."""
    size_bytes = path.stat().st_size
    if size_bytes < _WHOLE_HASH_BELOW_BYTES:
        return sha256_of(path)
    with path.open("rb") as stream:
        head = stream.read(_SAMPLE_BYTES)
        stream.seek(-_SAMPLE_BYTES, 2)
        return hashlib.sha256(head + stream.read() + str(size_bytes).encode()).hexdigest()
