# pyright: basic
"""Tokenizers of the real classes, trained in a moment on the digits' captions and the pipelines' own templates."""

import inspect
import json
from functools import cache
from typing import Any

from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from trainer.digits import WORDS, caption_of

# The annotations of these constructors are narrower than what they take.
_qwen: Any = Qwen2Tokenizer
_gemma: Any = GemmaTokenizer

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN = (
    "system Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background: user assistant"
)
_LUMINA = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start>"
)
_SANA: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
_CORPUS = [*(caption_of(digit) for digit in range(len(WORDS))), _QWEN, _LUMINA, *_SANA]


@cache
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_CORPUS * 8, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def qwen_tokenizer() -> Any:
    """A byte-level tokenizer with Qwen's special words, a chat template and the vision words of Qwen2.5-VL."""
    vocabulary, merges = _byte_pairs()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION]
    vocabulary = {**vocabulary, **{word: len(vocabulary) + index for index, word in enumerate(special)}}
    tokenizer = _qwen(
        vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048,
        additional_special_tokens=special[1:],
    )  # fmt: skip
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def gemma_tokenizer() -> Any:
    """The same pairs in Gemma's layout: its special words first, a visible space."""
    pieces, merges = _byte_pairs()
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])}
    for piece in sorted(pieces, key=pieces.__getitem__):
        vocabulary.setdefault(piece.replace("Ġ", "▁"), len(vocabulary))
    visible = [(first.replace("Ġ", "▁"), second.replace("Ġ", "▁")) for first, second in merges]
    return _gemma(vocab=vocabulary, merges=visible, model_max_length=1024)
