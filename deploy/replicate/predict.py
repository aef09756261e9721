# pyright: basic
"""The `predict` entry of the Cog container (cog.yaml): inputs with Cog's types, handed to the trainer's own entry."""

import os
import sys
from pathlib import Path as LocalPath

from cog import BasePredictor, Input, Path  # pyright: ignore[reportMissingImports] -- lives in the container

sys.path.insert(0, str(LocalPath(__file__).resolve().parents[2]))

from trainer.entry import cog_predict


class Predictor(BasePredictor):
    """Draws with a LoRA of this container's `train`, or lets a trained language model answer."""

    def predict(  # noqa: PLR0913, PLR0917 -- Cog makes the form of a model from this list
        self,
        prompt: str = Input(description="What to draw, or what to ask"),
        lora: Path = Input(description="The tar that train made, or its .safetensors file"),  # noqa: B008 -- Cog reads it
        base_model: str = Input(description="Hub id of the base; the tar names its own", default=""),
        seed: int = Input(description="The same seed gives the same result", default=0),
        num_outputs: int = Input(description="How many", default=1, ge=1, le=8),
        lora_scale: float = Input(description="How strongly the LoRA acts", default=1.0, ge=0.0, le=2.0),
        num_inference_steps: int = Input(description="Pictures: steps; 0 for the model's own", default=0, ge=0, le=200),
        guidance_scale: float = Input(description="Pictures: guidance; 0 for the model's own", default=0.0, ge=0.0),
        width: int = Input(description="Pictures: pixels; 0 for the model's own", default=0, ge=0, le=4096),
        height: int = Input(description="Pictures: pixels; 0 for the model's own", default=0, ge=0, le=4096),
        max_new_tokens: int = Input(description="Texts: the longest answer", default=256, ge=1, le=8192),
        temperature: float = Input(description="Texts: 0 for the likeliest words", default=0.0, ge=0.0, le=5.0),
    ) -> list[Path]:
        """PNG files, or text files."""
        wish = cog_predict.Wish(
            prompt=prompt,
            lora=LocalPath(lora),
            base_model=base_model,
            seed=seed,
            count=num_outputs,
            weight=lora_scale,
            steps=num_inference_steps,
            guidance=guidance_scale,
            width=width,
            height=height,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        return [Path(path) for path in cog_predict.predict(wish, os.environ)]
