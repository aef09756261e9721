# pyright: basic
"""Z-Image: Qwen3 text of any length; pictures and texts go in as lists, x0 - n comes out at time 1 - sigma."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from torch import Tensor

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import Conditioning, collated


class ZImage(DiffusersFamily):
    """The Z-Image adapter."""

    name = "z_image"
    pipeline_class: Any = ZImagePipeline
    denoiser_class: Any = ZImageTransformer2DModel

    def encode_text(self, encoders: Any, prompts: list[str], max_length: int) -> Conditioning:
        """Qwen3 states [B, longest, d] and which of them are words."""
        with torch.no_grad():
            # A copy, because the pipeline writes into the list.
            texts, _ = encoders.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=max_length
            )
        mask = [torch.ones(len(text), dtype=torch.bool) for text in texts]
        return collated(
            [
                {"prompt_embeds": text.cpu(), "prompt_embeds_mask": words}
                for text, words in zip(texts, mask, strict=True)
            ]
        )

    def predict(
        self,
        denoiser: Any,
        noisy: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Tensor:
        """Lists in, lists out, with the clock and the sign turned."""
        pictures = list(noisy.unsqueeze(2).unbind(0))
        output = denoiser(pictures, 1 - time, _texts(conditioning), return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    def pipeline_arguments(self, conditioning: Conditioning, negative: Conditioning, guidance: float) -> dict[str, Any]:
        """Lists of texts."""
        texts = {"prompt_embeds": _texts(conditioning), "negative_prompt_embeds": _texts(negative)}
        return {**texts, "guidance_scale": guidance}


def _texts(conditioning: Conditioning) -> list[Tensor]:
    """The words of each prompt, without what fills them up."""
    pairs = zip(conditioning["prompt_embeds"], conditioning["prompt_embeds_mask"], strict=True)
    return [states[mask] for states, mask in pairs]


FAMILY = ZImage()
