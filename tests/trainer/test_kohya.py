# pyright: basic
"""The kohya file, read back by diffusers' own reader: the same numbers, at the widths of the published models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.publish.kohya import NoKohyaName, to_kohya

RANK = 4
INNER, MLP = 3072, 12288
WIDTHS = {
    **{
        f"transformer_blocks.0.{layer}": width
        for layer, width in {
            "attn.to_q": INNER, "attn.to_k": INNER, "attn.to_v": INNER, "attn.to_out.0": INNER,
            "attn.add_q_proj": INNER, "attn.add_k_proj": INNER, "attn.add_v_proj": INNER, "attn.to_add_out": INNER,
            "ff.net.0.proj": MLP, "ff.net.2": INNER, "ff_context.net.0.proj": MLP, "ff_context.net.2": INNER,
            "norm1.linear": 6 * INNER, "norm1_context.linear": 6 * INNER,
        }.items()
    },
    **{
        f"single_transformer_blocks.0.{layer}": width
        for layer, width in {
            "attn.to_q": INNER, "attn.to_k": INNER, "attn.to_v": INNER, "proj_mlp": MLP, "proj_out": INNER,
            "norm.linear": 3 * INNER,
        }.items()
    },
}  # fmt: skip
"""One double and one single block of the published FLUX, by output width."""
INPUTS = {"ff.net.2": MLP, "ff_context.net.2": MLP, "proj_out": INNER + MLP}


def flux_lora(modules: list[str]) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        inputs = INPUTS.get(module.split(".", 2)[2], INNER)
        tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, inputs, generator=chance)
        tensors[f"{module}.lora_B.weight"] = torch.randn(WIDTHS[module], RANK, generator=chance)
    return tensors


def assert_read_back(tensors: dict[str, Tensor], alpha: float) -> None:
    """Every trained layer has the same product; the reader folds alpha / rank into A."""
    back = _convert_kohya_flux_lora_to_diffusers(to_kohya("flux", tensors, alpha, WIDTHS))
    for name, tensor in tensors.items():
        expected = tensor * (alpha / RANK) if ".lora_A." in name else tensor
        assert torch.equal(back.pop(f"transformer.{name}"), expected), name
    # What was not trained beside a trained part of a fused layer has no effect.
    assert all(not tensor.any() for name, tensor in back.items() if ".lora_B." in name)


def test_every_flux_layer_comes_back_exactly_and_alpha_need_not_be_the_rank() -> None:
    assert_read_back(flux_lora(sorted(WIDTHS)), alpha=8.0)


def test_a_part_of_a_fused_layer_comes_back_alone() -> None:
    modules = ["transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.proj_mlp"]
    assert_read_back(flux_lora(modules), alpha=float(RANK))


def test_a_layer_without_a_kohya_name_and_an_unknown_family_are_refused() -> None:
    tensors = {"norm_out.linear.lora_A.weight": torch.zeros(1, 1), "norm_out.linear.lora_B.weight": torch.zeros(1, 1)}
    with pytest.raises(NoKohyaName, match=r"norm_out\.linear"):
        to_kohya("flux", tensors, 1.0, {})
    with pytest.raises(NoKohyaName, match="magnitude"):
        to_kohya("sdxl", {"conv_in.lora_magnitude_vector": torch.zeros(1)}, 1.0, {})
    with pytest.raises(NoKohyaName, match="sana"):
        to_kohya("sana", {}, 1.0, {})


def tiny_unet(family: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    extra: dict[str, Any] = {}
    if family == "sdxl":
        extra = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64, "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }  # fmt: skip
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
        attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **extra,
    )  # fmt: skip
    return unet.requires_grad_(False).eval()


def predict(unet: Any, family: str) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    added = {"text_embeds": torch.randn(1, 16, generator=chance), "time_ids": torch.arange(6.0)[None]}
    with torch.no_grad():
        return unet(
            torch.randn(1, 4, 8, 8, generator=chance), torch.tensor([7]), torch.randn(1, 5, 16, generator=chance),
            added_cond_kwargs=added if family == "sdxl" else None, return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "loader"), [("sd1x", StableDiffusionLoraLoaderMixin), ("sdxl", StableDiffusionXLLoraLoaderMixin)]
)
def test_a_unet_with_the_kohya_file_predicts_the_same_to_the_bit(family: str, loader: Any, tmp_path: Path) -> None:
    base = tiny_unet(family)
    trained: Any = copy.deepcopy(base)
    targets = sorted({name for name, module in base.named_modules() if isinstance(module, nn.Linear)})
    trained.add_adapter(LoraConfig(r=RANK, lora_alpha=8, target_modules=targets))
    for name, parameter in trained.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tensors = get_peft_model_state_dict(trained)
    path = tmp_path / "lora_kohya.safetensors"
    save_file(to_kohya(family, tensors, 8.0, {}), path)

    state, alphas, *_ = loader.lora_state_dict(path, unet_config=base.config)
    loader.load_lora_into_unet(state, network_alphas=alphas, unet=base)
    assert not torch.equal(predict(tiny_unet(family), family), predict(trained, family))
    assert torch.equal(predict(base, family), predict(trained, family))
