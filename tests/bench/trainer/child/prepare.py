# pyright: basic
"""`python -m tests.bench.trainer.child.prepare HOME`: the data and the tiny models that all sides share.

pictures/          96 tinted handwritten digits with a text file beside each, as our trainer reads them
pictures-hub/      the same files with a metadata.jsonl, as `datasets` reads them
held-out.pt        32 other digits, [32, 3, 32, 32] in -1..1, and their captions
models/sd1x, sdxl  real architectures, small and untrained; FLUX is the trained fixture of the repository
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.bench.trainer.child.models import build_models
from tests.trainer.tiny.dialogues import chat, pairs, reversed_preference, write_jsonl
from tests.trainer.tiny.qwen2 import build_qwen2
from trainer.demo_data import write_demo_data

TRAINED = 96
HELD_OUT = 32
_TAUGHT_STEPS = 120


def main() -> None:
    """Make what is missing."""
    home = Path(sys.argv[1])
    write_pictures(home)
    write_dialogues(home)
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


def write_dialogues(home: Path) -> None:
    """Both kinds of rows, the held-out ones, and the model."""
    dialogues = [pair for pair in pairs() if len(set(pair[1].split())) > 1]  # others read the same turned round
    random.Random(0).shuffle(dialogues)  # noqa: S311 -- repeatable on purpose
    training, held_out = dialogues[:-HELD_OUT], dialogues[-HELD_OUT:]
    write_jsonl(home / "sft.jsonl", [chat(*pair) for pair in training])
    write_jsonl(home / "dpo.jsonl", [reversed_preference(*pair) for pair in training])
    rows = [
        {"question": question, "chosen": answer, "rejected": " ".join(reversed(answer.split()))}
        for question, answer in held_out
    ]
    (home / "held-out-text.json").write_text(json.dumps(rows), encoding="utf-8")
    texts = [f"{question} {answer}" for question, answer in training]
    teach_words(build_qwen2(home / "models" / "qwen2", texts, vocab_size=2048, width=128, layers=4), texts)


def teach_words(folder: Path, texts: list[str]) -> None:
    """Train all of the model for a moment on plain sentences: in random layers an adapter has nothing to turn."""
    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = random.Random(0)  # noqa: S311 -- repeatable on purpose
    for _ in range(_TAUGHT_STEPS):
        batch = tokenizer(order.sample(texts, 16), return_tensors="pt", padding=True, truncation=True, max_length=48)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def _pixels(picture: Path) -> torch.Tensor:
    values = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


if __name__ == "__main__":
    main()
