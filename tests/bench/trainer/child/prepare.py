# pyright: basic
"""`python -m tests.bench.trainer.child.prepare HOME`: the data and the tiny models that all sides share.

pictures/          96 tinted handwritten digits with a text file beside each, as our trainer reads them
pictures-hub/      the same files with a metadata.jsonl, as `datasets` reads them
held-out.pt        32 other digits, [32, 3, 32, 32] in -1..1, and their captions
models/sd1x, sdxl  real architectures, small and untrained; FLUX is the trained fixture of the repository
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.bench.trainer.child.models import build_models
from trainer.demo_data import write_demo_data

TRAINED = 96
HELD_OUT = 32


def main() -> None:
    """Make what is missing."""
    home = Path(sys.argv[1])
    write_pictures(home)
    build_models(home / "models")


def write_pictures(home: Path) -> None:
    """Both picture folders and the held-out pictures."""
    everything = home / "all"
    ours, plain, theirs = home / "pictures", home / "pictures-plain", home / "pictures-hub"
    write_demo_data(everything, TRAINED + HELD_OUT)
    for folder in (ours, plain, theirs):
        folder.mkdir()
    held_out: list[tuple[torch.Tensor, str]] = []
    with (theirs / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number, picture in enumerate(sorted(everything.glob("*.png"))):
            text = picture.with_suffix(".txt")
            caption = text.read_text(encoding="utf-8").strip()
            if number >= TRAINED:
                held_out.append((_pixels(picture), caption))
                continue
            metadata.write(json.dumps({"file_name": picture.name, "text": caption}) + "\n")
            os.link(picture, ours / picture.name)
            os.link(text, ours / text.name)
            os.link(picture, plain / picture.name)
            os.link(picture, theirs / picture.name)
    kept = {"pixels": torch.stack([pixels for pixels, _ in held_out]), "captions": [text for _, text in held_out]}
    torch.save(kept, home / "held-out.pt")


def _pixels(picture: Path) -> torch.Tensor:
    values = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


if __name__ == "__main__":
    main()
