# pyright: basic
"""What learns in a language model: low-rank adapters in PEFT's layout, or the whole model in transformers'."""

import json
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.contracts.training.llm import LlmSpec
from trainer.failures import AttemptFailed
from trainer.files import settle_header
from trainer.llm.base_model import Base
from trainer.train.speed import make_adapters_lean
from trainer.train.task import TrainedPart

ADAPTER_FILE_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
MODEL_FILE_NAME = "model.safetensors"


class LanguagePart(TrainedPart, Protocol):
    """A trained part that can show the model as it was before, and write it whole."""

    def as_reference(self) -> AbstractContextManager[Any]:
        """While entered, the model answers as the base model does."""
        ...

    def write_merged(self, folder: Path) -> list[Path]:
        """Write a complete model that needs no adapter; returns its files."""
        ...


class LanguageAdapter:
    """LoRA layers in a frozen language model. Parameters are float32 whatever the base runs in."""

    def __init__(self, base: Base, spec: LlmSpec) -> None:
        self._base = base
        self.config = LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.lora_rank,
            lora_alpha=spec.effective_lora_alpha,  # pyright: ignore[reportArgumentType] -- PEFT divides only
            lora_dropout=spec.lora_dropout,
            use_dora=spec.use_dora,
            use_rslora=spec.use_rslora,
            init_lora_weights="gaussian" if spec.lora_init_type == "gaussian" else True,
            target_modules=spec.peft_lora_target_modules or "all-linear",
        )
        try:
            with warnings.catch_warnings():
                # PEFT asks transformers by a name that transformers is about to retire.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
                self._peft: Any = get_peft_model(base.model, self.config)
        except ValueError as error:
            message = f"the base model has no such layers: {str(error).splitlines()[0][:300]}"
            advice = "Leave lora_target_modules out for every linear layer, or name layers of this model."
            raise AttemptFailed("bad_config", message, advice) from error
        self.model = base.model
        make_adapters_lean(self.model)
        self.parameters: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()

    @property
    def identity(self) -> dict[str, Any]:
        """Rank, alpha, targets and kind."""
        targets = self._peft.peft_config["default"].target_modules
        return {
            "rank": self.config.r,
            "alpha": self.config.lora_alpha,
            "targets": sorted(targets) if isinstance(targets, set | list) else targets,
            "kind": f"dora={self.config.use_dora} rslora={self.config.use_rslora}",
        }

    def as_reference(self) -> AbstractContextManager[Any]:
        """The adapter switched off."""
        return self._peft.disable_adapter()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT name, detached on the CPU."""
        state = get_peft_model_state_dict(self._peft)
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors of the same names and shapes back."""
        set_peft_model_state_dict(self._peft, tensors)

    def write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """The two files that `PeftModel.from_pretrained` and vLLM load."""
        folder.mkdir(parents=True, exist_ok=True)
        weights, config = folder / ADAPTER_FILE_NAME, folder / ADAPTER_CONFIG_NAME
        save_file(tensors, weights, metadata={"format": "pt", **facts})
        settle_header(weights)
        stored = {**self._peft.peft_config["default"].to_dict(), "inference_mode": True}
        stored["base_model_name_or_path"] = self._base.name
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in stored.items()}
        config.write_text(json.dumps(plain, indent=1, sort_keys=True, default=str), encoding="utf-8")
        return [weights, config]

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The tensors of a folder that `write` filled, by PEFT name."""
        return load_file(folder / ADAPTER_FILE_NAME)

    def write_merged(self, folder: Path) -> list[Path]:
        """The base model with the adapter added in; the adapter is gone from memory afterwards."""
        merged = self._peft.merge_and_unload(safe_merge=True)
        return write_model(merged, self._base, folder, {})


class WholeModel:
    """Every parameter of the model. Float32, with the smaller number type only in the computation."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self.model = base.model
        self.parameters: list[nn.Parameter] = list(self.model.parameters())
        for parameter in self.parameters:
            parameter.requires_grad = True

    @property
    def identity(self) -> dict[str, Any]:
        """The kind alone: all of it is trained."""
        return {"kind": "full"}

    def as_reference(self) -> AbstractContextManager[Any]:
        """Nothing to switch off: it is the base until the first step, which is when references are made."""
        return nullcontext()

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter once, tied ones under their first name."""
        named = self.model.named_parameters()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors of the same names and shapes back."""
        parameters = dict(self.model.named_parameters())
        for name, tensor in tensors.items():
            parameters[name].data.copy_(tensor)

    def write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """A model folder that `from_pretrained` loads."""
        return write_model(self.model, self._base, folder, facts, tensors)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The tensors of a folder that `write` filled."""
        return load_file(folder / MODEL_FILE_NAME)

    def write_merged(self, folder: Path) -> list[Path]:
        """Refused by the config's check: it is whole already."""
        return write_model(self.model, self._base, folder, {})


def write_model(
    model: Any, base: Base, folder: Path, facts: dict[str, str], tensors: dict[str, Tensor] | None = None
) -> list[Path]:
    """Weights, config and generation config; one file of weights, by the names in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    named = tensors or {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}
    weights = folder / MODEL_FILE_NAME
    save_file(named, weights, metadata={"format": "pt", **facts})
    settle_header(weights)
    model.config.save_pretrained(folder)
    base.generation_config.save_pretrained(folder)
    return [weights, folder / "config.json", folder / "generation_config.json"]
