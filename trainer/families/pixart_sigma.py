# pyright: basic
"""PixArt-Sigma: T5 text, noise at a step of 1,000; its second half of channels, a learned variance, is not trained.

Its pipeline has no LoRA loader, so the adapter is a PEFT folder: `PeftModel.from_pretrained(transformer, folder)`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from peft import inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.families.protocol import Conditioning
from trainer.families.scheduled import ScheduleFamily

_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


class PixArtSigma(ScheduleFamily):
    """The PixArt-Sigma adapter."""

    name = "pixart_sigma"
    pipeline_class: Any = PixArtSigmaPipeline
    denoiser_class: Any = PixArtTransformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """T5 states [B, max_length, d] and which of them are words."""
        with torch.no_grad():
            states, mask, _, _ = encoders.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=max_length
            )
        return {"prompt_embeds": states.cpu(), "prompt_attention_mask": mask.cpu()}

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """One call; only the noise of what comes back."""
        output = denoiser(
            noisy, encoder_hidden_states=conditioning["prompt_embeds"], timestep=time,
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
        )[0]  # fmt: skip
        return output[:, : noisy.shape[1]]

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """The size is drawn as asked, not the nearest of a table, and no negative text beside the embedded one."""
        arguments = super().pipeline_arguments(conditioning, negative, guidance)
        return {**arguments, "negative_prompt": None, "use_resolution_binning": False}

    def add_adapter(self, denoiser: Any, config: Any) -> None:
        """With PEFT: this network has no method of its own."""
        inject_adapter_in_model(config, denoiser)

    def save_lora(self, folder: Path, tensors: Conditioning, adapter_config: dict[str, Any]) -> list[Path]:
        """`adapter_model.safetensors` with PEFT's keys, and `adapter_config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(adapter_config, indent=1, sort_keys=True)
        weights, config = folder / _WEIGHTS, folder / "adapter_config.json"
        config.write_text(text, encoding="utf-8")
        save_file({f"{_PEFT_PREFIX}{name}": tensor for name, tensor in tensors.items()}, weights)
        return [weights, config]

    def read_lora(self, folder: Path) -> Conditioning:
        """The file without PEFT's prefix."""
        return {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in load_file(folder / _WEIGHTS).items()}


FAMILY = PixArtSigma()
