# pyright: basic
"""Longer runs of the same tiny models, for `just learn`: what the quick tests see begin goes on."""

from pathlib import Path

import pytest
from attempts import AttemptStarter
from family_runs import FamilyRun
from peft import PeftModel
from tiny.pipelines import RECIPES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]
STEPS = 300


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_longer_training_learns_more(name: str, tmp_path: Path, digits: Path, shared_cache: Path) -> None:
    """Of the held-out loss a fifth is gone, and what the pipeline draws is nearer to the data by a tenth."""
    run = FamilyRun(name, tmp_path, AttemptStarter(tmp_path, digits, shared_cache))
    run.config.update(max_train_steps=STEPS, learning_rate=0.005, validation_disable=True)
    pipeline = run.vendors_pipeline()
    loss, distance = run.held_out_loss(run.denoiser_of(pipeline)), run.distance_to_data(pipeline)
    output = str(run.lora.work_dir / "output")
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(output)
    else:
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, output)
    assert run.held_out_loss(run.denoiser_of(pipeline)) < 0.8 * loss
    assert run.distance_to_data(pipeline) < 0.9 * distance
