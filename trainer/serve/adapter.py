"""A finished LLM LoRA as PEFT writes it: what its config says, which tensors it holds, and what identifies it."""

import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgspec

from trainer.failures import AttemptFailed
from trainer.files import sha256_of

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 * 1024 * 1024
_SHORT_DIGEST = 12
_ADVICE = "Give the folder that a finished LLM job delivered, with adapter_config.json and adapter_model.safetensors."


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The members of PEFT's adapter_config.json that decide whether a server takes the adapter."""

    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    use_dora: bool = False
    use_rslora: bool = False
    trainable_token_indices: Any = None


@dataclass(frozen=True)
class Adapter:
    """One adapter folder, read. `shapes` are the tensors' shapes by name."""

    folder: Path
    config: AdapterConfig
    shapes: dict[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """The highest rank of any layer."""
        return max([self.config.r, *self.config.rank_pattern.values()])

    @cached_property
    def digests(self) -> dict[str, str]:
        """The hex sha256 of both files by name."""
        return {name: sha256_of(self.folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}

    @property
    def version(self) -> str:
        """What tells this adapter from every other: the beginning of a hash over both files."""
        text = json.dumps(self.digests, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_SHORT_DIGEST]


def read_adapter(folder: Path) -> Adapter:
    """Reads config and tensor names without loading a weight.

    Raises:
        AttemptFailed: bad_data, naming the file that is missing or damaged.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG_NAME).read_bytes(), type=AdapterConfig)
        shapes = _shapes_of(folder / WEIGHTS_NAME)
    except FileNotFoundError as error:
        raise AttemptFailed("bad_data", f"{error.filename} is not there", _ADVICE) from error
    except (OSError, ValueError) as error:  # a DecodeError of msgspec is a ValueError
        raise AttemptFailed("bad_data", f"{folder} holds no sound adapter: {error}", _ADVICE) from error
    return Adapter(folder, config, shapes)


@contextmanager
def placed(adapter: Adapter, root: Path, name: str) -> Generator[Path]:
    """The adapter in a folder of its own below `root`, whole; the same adapter is in the same folder every time.

    The folder's name carries the adapter's version: vLLM keys its prefix cache by an adapter's name and path, so new
    weights under an old path would be answered with what it remembers of the old ones. Anyone may read it, for the
    server may run as another user. When the server does not take it, a folder that is new is deleted again.

    Raises:
        AttemptFailed: bad_config, when nothing can be written there.
    """
    target = root / f"{path_safe(name)}-{adapter.version}"
    is_new = not _holds(target, adapter)
    if is_new:
        _copy(adapter, target)
    try:
        yield target
    except AttemptFailed:
        if is_new:
            shutil.rmtree(target)
        raise


def remove_placed(root: Path, name: str) -> None:
    """Deletes every version that `place` has put there under this name."""
    version = "[0-9a-f]" * _SHORT_DIGEST
    for folder in root.glob(f"{path_safe(name)}-{version}"):
        shutil.rmtree(folder)


def path_safe(name: str) -> str:
    """The name as one part of a path."""
    return name.replace("/", "--").replace(":", "--")


def _copy(adapter: Adapter, target: Path) -> None:
    """Whole or not at all: the folder gets its name when everything is in it."""
    scratch = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for file_name in adapter.digests:
            shutil.copyfile(adapter.folder / file_name, scratch / file_name)
            (scratch / file_name).chmod(0o644)
        scratch.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)  # only what is damaged gets here
        scratch.replace(target)
    except OSError as error:
        advice = "Name a folder that can be written and that the server can read with --adapter-dir."
        raise AttemptFailed("bad_config", f"{target} cannot be written: {error.strerror}", advice) from error


def _holds(folder: Path, adapter: Adapter) -> bool:
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in adapter.digests.items()
    )


def _shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a safetensors header: its length in eight little-endian bytes, then JSON."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} does not begin as a safetensors file")
        header = stream.read(length)
    read: object = json.loads(header)
    if not isinstance(read, dict):
        raise TypeError(f"{path.name} has no table of tensors")
    table = cast("dict[str, dict[str, Any]]", read)
    return {
        name: tuple(int(side) for side in entry["shape"]) for name, entry in table.items() if name != "__metadata__"
    }
