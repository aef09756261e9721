# pyright: basic
"""The trained part: low-rank adapters on a frozen network, how they are read out, put back and written."""

import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.failures import AttemptFailed
from trainer.families.protocol import Family
from trainer.files import settle_header


class Adapter:
    """The LoRA of one denoiser. Parameters are float32 whatever the base runs in."""

    def __init__(self, family: Family, denoiser: Any, spec: DiffusionSpec) -> None:
        self._family = family
        self.model = denoiser
        targets = self._targets = family.lora_targets(denoiser, spec)
        self.config = LoraConfig(
            r=spec.lora_rank,
            lora_alpha=spec.effective_lora_alpha,  # pyright: ignore[reportArgumentType] -- PEFT divides only
            lora_dropout=spec.lora_dropout,
            init_lora_weights="gaussian" if spec.lora_init_type == "gaussian" else True,
            use_dora=spec.use_dora,
            target_modules=targets,
        )
        try:
            with warnings.catch_warnings():
                # That no adapter can be merged into a packed base is nothing to warn of: none is merged here.
                warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
                family.add_adapter(denoiser, self.config)
        except ValueError as error:
            advice = "Choose other targets; this base model has no such layers."
            raise AttemptFailed("bad_config", f"no layer matches {', '.join(targets)}", advice) from error
        self.parameters: list[nn.Parameter] = [p for p in denoiser.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        by_place = {parameter.data_ptr(): parameter for parameter in self.parameters}
        # PEFT finds the names by a walk over the whole network, and the moving average asks at every step.
        self._named = {name: by_place[value.data_ptr()] for name, value in get_peft_model_state_dict(denoiser).items()}

    @property
    def identity(self) -> dict[str, Any]:
        """Rank, alpha, targets and whether weights are decomposed."""
        return {
            "rank": self.config.r,
            "alpha": self.config.lora_alpha,
            "targets": self._targets,
            "dora": self.config.use_dora,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT name, detached on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._named.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors of the same names and shapes back."""
        set_peft_model_state_dict(self.model, tensors)

    def write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """Write a LoRA file with diffusers' keys, its adapter metadata, and our facts beside it."""
        config = self.config.to_dict()
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        path, *others = self._family.save_lora(folder, tensors, plain)
        with safe_open(path, framework="pt") as stored:
            metadata = {**(stored.metadata() or {}), **facts}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 -- not a dict
        save_file(weights, path, metadata=metadata)
        settle_header(path)
        return [path, *others]

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The tensors of the file that `write` wrote, by PEFT name."""
        return self._family.read_lora(folder)


def begin_with(part: Adapter, name: str) -> None:
    """Start from the weights of another adapter: the folder that a training wrote, or the file in it.

    Raises AttemptFailed(bad_config) when it is not there, or when its layers or its rank are others.
    """
    path = Path(name).expanduser()
    folder = path.parent if path.is_file() else path
    if not any(folder.glob("*.safetensors")):
        advice = "Give init_lora as the folder of a trained adapter on the training machine."
        raise AttemptFailed("bad_config", f"no adapter lies in {name}", advice)
    given, own = part.read(folder), part.tensors()
    differing = sorted(
        key
        for key in given.keys() | own.keys()
        if key not in given or key not in own or given[key].shape != own[key].shape
    )
    if differing:
        message = f"the adapter in {name} differs from this one in {len(differing)} tensors, such as {differing[0]}"
        raise AttemptFailed("bad_config", message, "Set lora_rank, use_dora and the targets as they were for it.")
    part.load(given)
