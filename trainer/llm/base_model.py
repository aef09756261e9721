# pyright: basic
"""Find and load a language model: a local transformers folder, or a hub snapshot."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from shared.contracts.training.llm import LlmSpec
from trainer.failures import AttemptFailed
from trainer.families.base_model import content_id, snapshot
from trainer.train.precision import Precision

_ADVICE = (
    "Give model as a folder on the training machine that holds config.json and safetensors, or as a hub id that the "
    "machine can download (set HF_TOKEN for gated models, and unset HF_HUB_OFFLINE)."
)
_PARTS = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt"]


@dataclass
class Base:
    """A language model in memory with its tokenizer, and what it is called."""

    name: str
    folder: Path
    model: Any
    tokenizer: Any
    generation_config: GenerationConfig
    """As the base brings it; training samples greedily with its own."""

    @property
    def fingerprint(self) -> str:
        """A hash of its weights and config."""
        digest = hashlib.sha256()
        for path in sorted([self.folder / "config.json", *self.folder.glob("*.safetensors")]):
            digest.update(f"{path.name}\0{content_id(path)}\n".encode())
        return digest.hexdigest()


def load_base(spec: LlmSpec, precision: Precision) -> Base:
    """Raises AttemptFailed when there is no such model, or it cannot be loaded as asked."""
    folder = _locate(spec.pretrained_model_name_or_path, spec.revision)
    quantization = _quantization(spec, precision)
    whole = spec.model_type == "full"
    dtype = torch.float32 if whole else precision.dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False,
            attn_implementation=spec.attn_implementation, use_safetensors=True,
            **({"quantization_config": quantization, "device_map": {"": precision.device}} if quantization else {}),
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        message = f"{spec.pretrained_model_name_or_path} cannot be loaded as a language model: {reason}"
        raise AttemptFailed("bad_config", message, _ADVICE) from error
    if quantization is None:
        model.to(precision.device)
    model.requires_grad_(requires_grad=False)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    brought, model.generation_config = model.generation_config, GenerationConfig()
    return Base(spec.pretrained_model_name_or_path, folder, model, tokenizer, brought)


def _locate(name_or_path: str, revision: str | None) -> Path:
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or folder.is_absolute() or name_or_path.startswith("."):
        raise AttemptFailed("unreachable", f"no language model lies in {name_or_path}", _ADVICE)
    return snapshot(name_or_path, revision, _PARTS, _ADVICE)


def _quantization(spec: LlmSpec, precision: Precision) -> BitsAndBytesConfig | None:
    if spec.quantization == "none":
        return None
    if precision.device.type != "cuda":
        message = f"{spec.quantization} quantisation needs a CUDA device; this machine trains on its CPU"
        raise AttemptFailed("bad_config", message, "Remove the quantization settings, or run where there is a GPU.")
    if find_spec("bitsandbytes") is None:
        message = f"{spec.quantization} quantisation needs bitsandbytes, which this trainer's environment does not have"
        raise AttemptFailed("bad_config", message, "Install bitsandbytes there, or remove the quantization settings.")
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization_type,
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=precision.dtype,
    )
