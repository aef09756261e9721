# pyright: basic
"""A tiny Qwen2 of the real architecture with a tokenizer trained on the given texts; complete folders, no downloads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from trainer.llm.tokens import CHATML

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's own splitting, ChatML, and <|im_end|> as the end."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    kind = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, kind)
    model = json.loads(trained.to_str())["model"]
    vocab = {**model["vocab"], **{word: len(model["vocab"]) + number for number, word in enumerate(SPECIAL)}}
    merges: Any = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=1024,
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    return tokenizer


def build_qwen2(
    folder: Path, texts: Sequence[str], *, vocab_size: int = 1024, width: int = 64, layers: int = 2
) -> Path:
    """Write a model with random weights and its tokenizer; the same folder contents for the same texts."""
    tokenizer = train_tokenizer(texts, vocab_size)
    ends: Any = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, **ends,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
