"""A tiny Llama and LoRAs for it, as files that transformers, PEFT, vLLM and our own code read; written without torch.

Weights are chance with a seed. An adapter's are large, so that its answers differ from the base's.
"""

import json
import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, INNER, LAYERS, HEADS, HEAD_WIDTH = 128, 64, 2, 4, 32
VOCABULARY = 320
_END = "<|end|>"
Shapes = dict[str, tuple[int, ...]]


def write_tiny_llm(folder: Path, *, seed: int = 0) -> Path:
    """A LlamaForCausalLM of 0.3 M parameters with a tokenizer of bytes and a chat template; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config())
    _write_json(folder / "generation_config.json", {"eos_token_id": VOCABULARY - 1})
    _write_json(folder / "tokenizer.json", _tokenizer())
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "pad_token": _END}
    _write_json(folder / "tokenizer_config.json", {**settings, "chat_template": template, "model_max_length": 512})
    write_safetensors(folder / "model.safetensors", _base_shapes(), seed=seed, scale=0.08)
    return folder


def write_adapter(
    folder: Path,
    *,
    base: str,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj", "down_proj"),
    seed: int = 1,
    extra_shapes: Shapes | None = None,
    **config: Any,
) -> Path:
    """A LoRA in PEFT's layout; more members of adapter_config.json and more tensors by name. The folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: Shapes = {}
    for layer in range(LAYERS):
        for target in targets:
            out, into = _SIDES[target]
            place = "self_attn" if target in _ATTENTION else "mlp"
            stem = f"base_model.model.model.layers.{layer}.{place}.{target}"
            shapes[f"{stem}.lora_A.weight"] = (rank, into)
            shapes[f"{stem}.lora_B.weight"] = (out, rank)
    write_safetensors(folder / "adapter_model.safetensors", {**shapes, **(extra_shapes or {})}, seed=seed, scale=0.3)
    stated: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(targets),
        "modules_to_save": None,
    }
    _write_json(folder / "adapter_config.json", {**stated, **config})
    return folder


def write_safetensors(path: Path, shapes: Shapes, *, seed: int, scale: float) -> None:
    """Tensors of float32 chance; those named like a norm are ones."""
    chance = random.Random(seed)  # noqa: S311 - weights, no secret
    header: dict[str, Any] = {}
    body = bytearray()
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        ones = "norm" in name
        values = array("f", (1.0 if ones else chance.gauss(0.0, scale) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + 4 * count]}
        body += values.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_SIDES = {
    "q_proj": (HEADS * HEAD_WIDTH, WIDTH),
    "k_proj": (HEADS * HEAD_WIDTH, WIDTH),
    "v_proj": (HEADS * HEAD_WIDTH, WIDTH),
    "o_proj": (WIDTH, HEADS * HEAD_WIDTH),
    "gate_proj": (INNER, WIDTH),
    "up_proj": (INNER, WIDTH),
    "down_proj": (WIDTH, INNER),
}
"""Outputs and inputs of each layer's linear maps."""


def _base_shapes() -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        for target, sides in _SIDES.items():
            shapes[f"{stem}.{'self_attn' if target in _ATTENTION else 'mlp'}.{target}.weight"] = sides
        shapes[f"{stem}.input_layernorm.weight"] = (WIDTH,)
        shapes[f"{stem}.post_attention_layernorm.weight"] = (WIDTH,)
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": VOCABULARY - 1,
    }


def _tokenizer() -> dict[str, Any]:
    """Byte-level BPE without merges: one token for each byte, in the printable stand-ins that byte-level BPE uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + at) for at, byte in enumerate(sorted(set(range(256)) - set(printable)))}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    end = {"id": VOCABULARY - 1, "content": _END, "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
