# pyright: basic
"""Real dialogues: the English part of chatterbot-corpus (BSD), from its installed package."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

TOPICS = ("ai", "science", "trivia", "computers", "history", "food", "literature", "money")


def pairs(topics: Iterable[str] = TOPICS) -> list[tuple[str, str]]:
    """Distinct questions and answers of ordinary length, in the corpus's order."""
    found: dict[tuple[str, str], None] = {}
    for topic in topics:
        text = files("chatterbot_corpus").joinpath(f"data/english/{topic}.yml").read_text(encoding="utf-8")
        for turns in yaml.safe_load(text)["conversations"]:
            words = [str(turn).strip() for turn in turns]
            for question, answer in zip(words[:-1:2], words[1::2], strict=False):
                if 3 < len(question) < 200 and 1 < len(answer) < 200:
                    found[question, answer] = None
    return list(found)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def reversed_preference(question: str, answer: str) -> dict[str, Any]:
    """A preference that can be learned: the same words in the wrong order are worse."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": " ".join(reversed(answer.split()))}],
    }
