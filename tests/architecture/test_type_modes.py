"""Every file is checked in strict mode but those at the torch border (decision 0011)."""

import re

from tests.support.sources import PRODUCT, ROOT

LOWER_MODE = re.compile(r"^\s*#\s*pyright:\s*(basic|standard|ignore)\s*$", re.MULTILINE)
NOT_STRICT = frozenset(
    {
        "deploy/replicate/predict.py",
        "deploy/replicate/train.py",
        "tests/bench/trainer/child/clock.py",
        "tests/bench/trainer/child/evaluate.py",
        "tests/bench/trainer/child/evaluate_language.py",
        "tests/bench/trainer/child/models.py",
        "tests/bench/trainer/child/ours.py",
        "tests/bench/trainer/child/prepare.py",
        "tests/bench/trainer/child/script.py",
        "tests/bench/trainer/child/torchvision_on_pillow.py",
        "tests/bench/trainer/child/trl_trainer.py",
        "tests/trainer/test_intake.py",
        "tests/trainer/test_downloads.py",
        "tests/trainer/test_archives.py",
        "tests/trainer/attempts.py",
        "tests/trainer/conftest.py",
        "tests/trainer/family_runs.py",
        "tests/trainer/llm_runs.py",
        "tests/trainer/receiver.py",
        "tests/trainer/test_after_training.py",
        "tests/trainer/test_attempt.py",
        "tests/trainer/test_brief_configs.py",
        "tests/trainer/test_captions.py",
        "tests/trainer/test_data.py",
        "tests/trainer/test_families.py",
        "tests/trainer/test_families_contract.py",
        "tests/trainer/test_families_learn.py",
        "tests/trainer/test_families_objective.py",
        "tests/trainer/test_features.py",
        "tests/trainer/test_fetch.py",
        "tests/trainer/test_fixture.py",
        "tests/trainer/test_kohya.py",
        "tests/trainer/test_llm_attempt.py",
        "tests/trainer/test_llm_learning.py",
        "tests/trainer/test_llm_parity.py",
        "tests/trainer/test_llm_rows.py",
        "tests/trainer/test_llm_smollm.py",
        "tests/trainer/test_llm_tokens.py",
        "tests/trainer/test_optimizers.py",
        "tests/trainer/test_quality.py",
        "tests/trainer/test_reports.py",
        "tests/trainer/test_resume.py",
        "tests/trainer/test_sampling.py",
        "tests/trainer/test_speed.py",
        "tests/trainer/test_stopping.py",
        "tests/trainer/test_training_keys.py",
        "tests/trainer/tiny/autoencoders.py",
        "tests/trainer/tiny/pipelines.py",
        "tests/trainer/tiny/text_encoders.py",
        "tests/trainer/tiny/tokenizers.py",
        "tests/trainer/tiny/dialogues.py",
        "tests/trainer/tiny/qwen2.py",
        "trainer/data/cache.py",
        "trainer/data/pictures.py",
        "trainer/data/prepare.py",
        "trainer/demo_data.py",
        "trainer/diffusion/session.py",
        "trainer/diffusion/task.py",
        "trainer/digits.py",
        "trainer/entry/adapter_weight.py",
        "trainer/entry/generate.py",
        "trainer/entry/publication.py",
        "trainer/entry/render.py",
        "trainer/entry/session.py",
        "trainer/families/auraflow.py",
        "trainer/families/base_model.py",
        "trainer/families/chroma.py",
        "trainer/families/flux.py",
        "trainer/families/flux2.py",
        "trainer/families/libraries.py",
        "trainer/families/lumina2.py",
        "trainer/families/over_diffusers.py",
        "trainer/families/pixart_sigma.py",
        "trainer/families/protocol.py",
        "trainer/families/qwen_image.py",
        "trainer/families/sana.py",
        "trainer/families/scheduled.py",
        "trainer/families/sd1x.py",
        "trainer/families/sd3.py",
        "trainer/families/sdxl.py",
        "trainer/families/z_image.py",
        "trainer/fixtures/build_tiny_flux.py",
        "trainer/nvml.py",
        "trainer/llm/base_model.py",
        "trainer/llm/batches.py",
        "trainer/llm/losses.py",
        "trainer/llm/part.py",
        "trainer/llm/predict.py",
        "trainer/llm/reference.py",
        "trainer/llm/scores.py",
        "trainer/llm/session.py",
        "trainer/llm/tasks.py",
        "trainer/llm/tokens.py",
        "trainer/llm/validation.py",
        "trainer/publish/kohya.py",
        "trainer/quality.py",
        "trainer/session.py",
        "trainer/train/average.py",
        "trainer/train/lion.py",
        "trainer/train/lora.py",
        "trainer/train/memory.py",
        "trainer/train/noising.py",
        "trainer/train/objective.py",
        "trainer/train/optim.py",
        "trainer/train/precision.py",
        "trainer/train/quantise.py",
        "trainer/train/recompute.py",
        "trainer/train/speed.py",
        "trainer/train/task.py",
        "trainer/train/trainee.py",
        "trainer/train/whole.py",
        "trainer/validate/render.py",
    }
)
"""Files may leave this list; none may join it."""


def _found() -> set[str]:
    files = (path for folder in (*PRODUCT, "tests") for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in files if LOWER_MODE.search(path.read_text(encoding="utf-8"))}


def test_no_file_joins_those_that_are_not_checked_strictly() -> None:
    joined = _found() - NOT_STRICT
    assert not joined, f"make these strict: {sorted(joined)}"


def test_a_file_that_became_strict_leaves_the_list() -> None:
    left = NOT_STRICT - _found()
    assert not left, f"take these off the list: {sorted(left)}"
