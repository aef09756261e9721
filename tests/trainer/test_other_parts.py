# pyright: basic
"""A base with a part of another model in its place: the part that is trained on is the one that was named."""

import shutil
from pathlib import Path

import pytest
from attempts import FIXTURE, AttemptStarter
from safetensors.torch import load_file, save_file

from trainer.failures import AttemptFailed
from trainer.families.base_model import fingerprint, with_other_parts

_WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def other_vae(tmp_path: Path) -> Path:
    """A folder that is a VAE itself, with other weights than the fixture's."""
    folder = tmp_path / "other-vae"
    shutil.copytree(FIXTURE / "vae", folder)
    weights = load_file(folder / _WEIGHTS)
    save_file({name: tensor * 0.9 for name, tensor in weights.items()}, folder / _WEIGHTS, metadata={"format": "pt"})
    return folder


def test_only_the_named_part_is_replaced(tmp_path: Path, other_vae: Path) -> None:
    base = with_other_parts(FIXTURE, {"vae": str(other_vae)}, tmp_path / "base")
    assert (base / "vae").resolve() == other_vae.resolve()
    assert fingerprint(base, ("transformer", "text_encoder")) == fingerprint(FIXTURE, ("transformer", "text_encoder"))
    assert (base / "model_index.json").read_bytes() == (FIXTURE / "model_index.json").read_bytes()


def test_a_whole_model_gives_its_part_and_t5_has_the_families_own_name(tmp_path: Path) -> None:
    other = tmp_path / "whole"
    shutil.copytree(FIXTURE, other)
    base = with_other_parts(FIXTURE, {"t5": str(other), "transformer": str(other)}, tmp_path / "base")
    assert (base / "text_encoder_2").resolve() == (other / "text_encoder_2").resolve()
    assert (base / "transformer").resolve() == (other / "transformer").resolve()
    assert (base / "text_encoder").resolve() == (FIXTURE / "text_encoder").resolve()


@pytest.mark.parametrize(
    ("parts", "kind", "named"),
    [({"unet": "/nowhere"}, "bad_config", "no unet"), ({"vae": "/nowhere"}, "unreachable", "/nowhere")],
)
def test_a_part_that_does_not_fit_or_exist_is_named(
    tmp_path: Path, parts: dict[str, str], kind: str, named: str
) -> None:
    with pytest.raises(AttemptFailed) as failed:
        with_other_parts(FIXTURE, parts, tmp_path / "base")
    assert failed.value.kind == kind
    assert named in failed.value.message


def test_a_training_uses_the_named_vae(start: AttemptStarter, other_vae: Path) -> None:
    usual, other = (
        start("usual", max_train_steps=1),
        start("other", max_train_steps=1, pretrained_vae_model_name_or_path=str(other_vae)),
    )
    assert (usual.run(), other.run()) == (0, 0)
    assert usual.losses() != other.losses()
