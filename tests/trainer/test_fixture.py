# pyright: basic
from pathlib import Path

import torch
from attempts import FIXTURE
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from trainer.fixtures.build_tiny_flux import build


def test_the_builder_makes_a_model_of_the_same_shape_that_loads_offline(tmp_path: Path) -> None:
    build(tmp_path / "built", vae_steps=2, transformer_steps=2)
    made, shipped = (
        FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        for folder in (tmp_path / "built", FIXTURE)
    )
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        mine, theirs = getattr(made, part).state_dict(), getattr(shipped, part).state_dict()
        assert mine.keys() == theirs.keys()
    assert made.tokenizer("a handwritten digit seven").input_ids[-1] == made.tokenizer.eos_token_id
