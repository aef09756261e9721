# pyright: basic
"""`python -m trainer.demo_data DIR [--count 100]`: real digits, red on yellow, with captions beside them."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.digits import RED, WORDS, YELLOW, caption_of, ink, tinted


def write_demo_data(folder: Path, count: int) -> None:
    """Write `count` PNGs of 32 px and as many text files, the ten digits in turn; the same files every time."""
    folder.mkdir(parents=True, exist_ok=True)
    coverage, labels = ink()
    by_digit = [np.flatnonzero(labels == digit) for digit in range(len(WORDS))]
    for number in range(count):
        digit = number % len(WORDS)
        source = by_digit[digit][number // len(WORDS)]
        pixels = (tinted(coverage[source], RED, YELLOW) * 255 + 0.5).astype(np.uint8)
        name = f"{number:04d}-{WORDS[digit]}"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption_of(digit) + "\n", encoding="utf-8")


def main() -> int:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--count", type=int, default=100)
    options = arguments.parse_args()
    write_demo_data(options.folder, options.count)
    sys.stdout.write(f"{options.count} pictures in {options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
