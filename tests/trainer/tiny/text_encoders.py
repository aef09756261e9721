# pyright: basic
"""Text encoders of the real classes with random weights: their embeddings only have to differ."""

from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny.tokenizers import VISION

# The annotations of these constructors are narrower than what they take.
_clip_config: Any = CLIPTextConfig
WIDTH = 32


def clip(tokenizer: Any, *, projected: bool = False) -> Any:
    """CLIP's text encoder, with its projection where a pipeline wants the pooled vector."""
    torch.manual_seed(0)
    config = _clip_config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2,
        projection_dim=WIDTH, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(tokenizer: Any, width: int = WIDTH) -> Any:
    """T5's encoder."""
    return _t5(T5Config, T5EncoderModel, tokenizer, width)


def umt5(tokenizer: Any) -> Any:
    """UMT5's encoder."""
    return _t5(UMT5Config, UMT5EncoderModel, tokenizer, WIDTH)


def gemma2(tokenizer: Any) -> Any:
    """Gemma 2."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), head_dim=8, hidden_size=WIDTH, intermediate_size=64, num_attention_heads=4,
        num_hidden_layers=2, num_key_value_heads=2, sliding_window=64,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def qwen3(tokenizer: Any, *, layers: int, causal: bool) -> Any:
    """Qwen3, with its language head where the pipeline's class has it."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    return (Qwen3ForCausalLM if causal else Qwen3Model)(config).eval()


def qwen_vl(tokenizer: Any) -> Any:
    """Qwen2.5-VL; its vision half is there and never used."""
    torch.manual_seed(0)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(word) for word in VISION)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH
        },
        vision_start_token_id=start, vision_end_token_id=end, image_token_id=image, video_token_id=video,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _t5(config_class: Any, model_class: Any, tokenizer: Any, width: int) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=max(len(tokenizer), 128), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return model_class(config).eval()
