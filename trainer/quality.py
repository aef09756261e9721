# pyright: basic
"""`python -m trainer.quality --base DIR --lora FILE --data DIR`: how much closer a LoRA brings renders to its data.

Prints one JSON object. Colour distance is the Euclidean distance in RGB (0..1) between the mean border colour of the
renders and that of the training pictures; accuracy is how many rendered digits an SVM trained on real ones reads right.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from trainer.digits import RED, SIDE, WORDS, YELLOW, Floats, accuracy, caption_of
from trainer.families.libraries import quieten_libraries

_RENDERS_PER_DIGIT = 2
_GREEN = 1


def measure(base: Path, lora: Path, data: Path, steps: int) -> dict[str, float | int]:
    """Render every digit without and with the LoRA and compare both with the pictures in `data`."""
    quieten_libraries()
    torch.set_num_threads(1)
    pipeline = FluxPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    target = _border_colour(_training_pictures(data))
    without = _render(pipeline, steps)
    pipeline.load_lora_weights(str(lora))
    with_lora = _render(pipeline, steps)
    labels = np.repeat(np.arange(len(WORDS)), _RENDERS_PER_DIGIT)
    return {
        "colour_distance_without": _distance(_border_colour(without), target),
        "colour_distance_with": _distance(_border_colour(with_lora), target),
        "digit_accuracy_without": accuracy(without.mean(axis=-1), labels),
        "digit_accuracy_with": accuracy(_red_on_yellow_ink(with_lora), labels),
        "renders": len(labels),
    }


def _render(pipeline: Any, steps: int) -> Floats:
    """Renders [N, 32, 32, 3] in 0..1, each digit in turn."""
    prompts = [caption_of(digit) for digit in range(len(WORDS)) for _ in range(_RENDERS_PER_DIGIT)]
    with torch.no_grad():
        return pipeline(
            prompt=prompts, num_inference_steps=steps, width=SIDE, height=SIDE, max_sequence_length=16,
            generator=torch.Generator().manual_seed(1), output_type="np",
        ).images  # fmt: skip


def _training_pictures(folder: Path) -> Floats:
    paths = sorted(folder.glob("*.png"))
    stacked = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return (stacked / 255).astype(np.float32)


def _border_colour(pictures: Floats) -> Floats:
    """Mean RGB of the three top rows, where no digit reaches."""
    return pictures[:, :3].mean(axis=(0, 1, 2)).astype(np.float32)


def _distance(one: Floats, other: Floats) -> float:
    return round(float(np.linalg.norm(one - other)), 4)


def _red_on_yellow_ink(pictures: Floats) -> Floats:
    """Ink coverage: green is what tells the red digit from the yellow ground."""
    coverage = (YELLOW[_GREEN] - pictures[..., _GREEN]) / (YELLOW[_GREEN] - RED[_GREEN])
    return coverage.clip(0, 1).astype(np.float32)


def main() -> int:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--base", type=Path, required=True)
    arguments.add_argument("--lora", type=Path, required=True)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--steps", type=int, default=8)
    options = arguments.parse_args()
    sys.stdout.write(json.dumps(measure(options.base, options.lora, options.data, options.steps)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
