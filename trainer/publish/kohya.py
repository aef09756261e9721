# pyright: basic
"""LoRA tensors under kohya's names, which ComfyUI and the WebUIs read. Only families whose names are known here."""

import torch
from torch import Tensor

from shared.contracts.training.delivery import KOHYA_FAMILIES

KOHYA_FILE_NAME = "lora_kohya.safetensors"

_UNET = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers of SDXL that readers know only under the name that its first publishers gave them."""
_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_WHOLE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in_out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in_in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in_out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in_in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in_out_layer",
    "proj_out": "final_layer_linear",
}
_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_transformer_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
"""Layers of the published FLUX that diffusers splits: kohya trains the whole, so the parts are put together again."""
_BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}

Pair = dict[str, Tensor]
"""`A` [rank, in] and `B` [out, rank] of one layer."""


class NoKohyaName(Exception):  # noqa: N818 -- an answer about a layer, not a fault
    """A trained layer has no name in kohya's layout."""


def to_kohya(family: str, tensors: dict[str, Tensor], alpha: float, widths: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of a LoRA, by PEFT name, under kohya's names; alpha stays what it is relative to the rank.

    `widths` gives the output width of each linear layer of the base by name: a fused layer needs that of the parts
    that were not trained too. Raises NoKohyaName for a layer without one.
    """
    if family not in KOHYA_FAMILIES:
        raise NoKohyaName(f"{family} has no known kohya layout")
    pairs = _pairs(tensors)
    return _flux(pairs, alpha, widths) if family == "flux" else _unet(pairs, alpha)


def _pairs(tensors: dict[str, Tensor]) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for name, tensor in tensors.items():
        module, found, rest = name.rpartition(".lora_")
        if not found or rest not in {"A.weight", "B.weight"}:
            raise NoKohyaName(f"{name} has no place in a kohya file")
        pairs.setdefault(module, {})[rest[0]] = tensor
    return pairs


def _unet(pairs: dict[str, Pair], alpha: float) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for module, pair in pairs.items():
        name = _UNET.get(module, module.replace(".", "_"))
        out |= _entry(f"lora_unet_{name}", pair["A"], pair["B"], alpha)
    return out


def _flux(pairs: dict[str, Pair], alpha: float, widths: dict[str, int]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    fused: dict[str, tuple[str, ...]] = {}
    for module, pair in pairs.items():
        name, parts = _flux_name(module)
        if parts:
            fused[name] = parts
        else:
            out |= _entry(f"lora_unet_{name}", pair["A"], pair["B"], alpha)
    for name, parts in fused.items():
        down, up = _block_diagonal([pairs.get(part) for part in parts], [widths[part] for part in parts])
        # The rank has multiplied; so must alpha, or the effect would shrink.
        out |= _entry(f"lora_unet_{name}", down, up, alpha * len(parts))
    return out


def _flux_name(module: str) -> tuple[str, tuple[str, ...]]:
    """Kohya's name of a layer and, for a part of a fused one, the names of all the parts in their order."""
    kind, _, rest = module.partition(".")
    index, _, layer = rest.partition(".")
    if kind not in _BLOCKS:
        if module in _WHOLE:
            return _WHOLE[module], ()
        raise NoKohyaName(f"{module} has no name in kohya's layout of flux")
    prefix = f"{_BLOCKS[kind]}_{index}"
    for fused, parts in _FUSED[kind].items():
        if layer in parts:
            return f"{prefix}_{fused}", tuple(f"{kind}.{index}.{part}" for part in parts)
    single = (_DOUBLE if kind == "transformer_blocks" else _SINGLE).get(layer)
    if single is None:
        raise NoKohyaName(f"{module} has no name in kohya's layout of flux")
    return f"{prefix}_{single}", ()


def _block_diagonal(parts: list[Pair | None], widths: list[int]) -> tuple[Tensor, Tensor]:
    """One down [parts*rank, in] and up [sum of widths, parts*rank] whose product is that of each part in its rows."""
    some = next(part for part in parts if part is not None)
    rank, inputs = some["A"].shape
    down = torch.zeros(len(parts) * rank, inputs, dtype=some["A"].dtype)
    up = torch.zeros(sum(widths), len(parts) * rank, dtype=some["B"].dtype)
    row = 0
    for index, (part, width) in enumerate(zip(parts, widths, strict=True)):
        columns = slice(index * rank, (index + 1) * rank)
        if part is not None:
            down[columns] = part["A"]
            up[row : row + width, columns] = part["B"]
        row += width
    return down, up


def _entry(name: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }
