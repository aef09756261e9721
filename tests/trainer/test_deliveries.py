# pyright: basic
"""Attempts whose results go elsewhere too: beside the training, which they never fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from attempts import FIXTURE, AttemptStarter
from huggingface_hub import constants
from receiver import Receiver
from safetensors import safe_open

from shared.contracts.run import ExitCode
from shared.contracts.training.delivery import FolderTarget
from tests.simulators.hub import TOKEN, Hub
from trainer.files import sha256_of
from trainer.publish.credentials import outside_from
from trainer.publish.folder import FolderStore
from trainer.publish.upload import OutgoingFile, UploadRefused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
LORA, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"
SHORT: dict[str, Any] = {"max_train_steps": 2, "checkpointing_steps": 2}
HUB = {"push_to_hub": True, "hub_model_id": "ann/digits"}
PROMPT = "a handwritten digit [seven] | *big*"
SAMPLING = {
    "validation_disable": False, "disable_benchmark": True, "validation_prompt": PROMPT, "validation_steps": 2,
    "validation_resolution": "32", "validation_num_inference_steps": 1,
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---", 2)[1])


def test_results_reach_the_hub_a_folder_and_the_control_plane(
    start: AttemptStarter, hub: Hub, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_PUBLISH_ROOTS", str(tmp_path / "shared"))
    folder = [{"provider": "local", "name": "team/digits"}]
    attempt = start(
        gateway=receiver, **SHORT, **HUB, **SAMPLING, lora_format="comfyui", lora_alpha=8, publishing_config=folder,
        model_card_note="A note of mine.", caption_dropout_probability=0,
    )  # fmt: skip
    assert attempt.run() == ExitCode.DONE

    told = receiver.received.of_type("delivery")
    assert {(each["target"], each["what"], each["status"]) for each in told} == {
        ("hub:ann/digits", "results", "delivered"),
        ("folder:team/digits", "results", "delivered"),
    }
    types = receiver.received.types
    assert max(index for index, name in enumerate(types) if name == "delivery") < types.index("done")
    assert {each["name"] for each in receiver.received.of_type("done")[0]["artifacts"]} == {
        LORA,
        KOHYA,
        "manifest.json",
    }

    repository = hub.repositories["ann/digits"]
    assert repository.private is True
    assert len(repository.commits) == 1
    sample = next(name for name in repository.files if name.startswith("samples/step-000002-"))
    assert set(repository.files) == {"README.md", LORA, KOHYA, sample}
    assert repository.files[LORA] == attempt.lora.read_bytes()
    copied = {path.name: path for path in (tmp_path / "shared" / "team" / "digits").rglob("*") if path.is_file()}
    assert copied[LORA].read_bytes() == attempt.lora.read_bytes()
    assert set(copied) == {Path(name).name for name in repository.files}
    with safe_open(copied[KOHYA], framework="pt") as stored:
        assert stored.metadata()["ss_network_alpha"] == "8"
        assert all(name.startswith("lora_unet_") for name in stored.keys())  # noqa: SIM118 -- not a dict
    assert_card(repository.files["README.md"].decode(), attempt, sample)
    everything = b"".join(path.read_bytes() for path in attempt.work_dir.rglob("*") if path.is_file())
    assert TOKEN.encode() not in everything


def assert_card(card: str, attempt: Any, sample: str) -> None:
    matter = front_matter(card)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert {"lora", "template:sd-lora", "not-for-all-audiences"} <= set(matter["tags"])
    assert matter["widget"] == [{"text": PROMPT, "output": {"url": sample}}]
    assert "base_model" not in matter  # the base is a folder of this machine
    assert str(FIXTURE.parent) not in card
    for path in (attempt.lora, attempt.work_dir / "output" / KOHYA):
        assert f"| `{path.name}` | {path.stat().st_size} | `{sha256_of(path)}` |" in card
    assert "A note of mine." in card
    assert "weight_name='pytorch_lora_weights.safetensors'" in card
    assert "`models/loras`" in card
    assert "| learning_rate | `0.005` |" in card
    assert r"\[seven\] \| \*big\*" in card


def test_a_hub_that_refuses_is_told_and_the_training_is_done(
    start: AttemptStarter, hub: Hub, receiver: Receiver
) -> None:
    attempt = start(gateway=receiver, **SHORT, push_to_hub=True, hub_model_id="bob/digits")
    assert attempt.run() == ExitCode.DONE
    [told] = receiver.received.of_type("delivery")
    assert (told["target"], told["status"]) == ("hub:bob/digits", "failed")
    assert "HF_TOKEN may not write there" in told["message"]
    done = receiver.received.of_type("done")[0]
    assert (done["undelivered"], len(done["artifacts"])) == ([], 2)
    assert hub.repositories == {}


def test_a_hub_that_stays_away_is_given_up_after_some_tries(start: AttemptStarter, hub: Hub) -> None:
    hub.refuse = lambda _method, _path: (503, {})
    attempt = start(**SHORT, **HUB)
    assert attempt.run() == ExitCode.DONE
    [told] = attempt.data("delivery")
    assert told["status"] == "failed"
    assert "HTTP 503: simulated 503, 6 times" in told["message"]
    assert len(hub.asked) == 6


def test_a_hub_that_comes_back_gets_everything(start: AttemptStarter, hub: Hub) -> None:
    left = iter([True] * 3)
    hub.refuse = lambda _method, _path: (503, {}) if next(left, False) else None
    attempt = start(**SHORT, **HUB)
    assert attempt.run() == ExitCode.DONE
    assert [told["status"] for told in attempt.data("delivery")] == ["delivered"]
    assert hub.repositories["ann/digits"].files[LORA] == attempt.lora.read_bytes()


def test_checkpoints_are_at_the_hub_before_training_goes_on_when_asked(start: AttemptStarter, hub: Hub) -> None:
    attempt = start(max_train_steps=2, checkpointing_steps=1, **HUB, push_checkpoints_to_hub=True)
    assert attempt.run() == ExitCode.DONE
    files = hub.repositories["ann/digits"].files
    for step in (1, 2):
        assert files[f"checkpoint-{step}/manifest.json"] == (attempt.checkpoint(step) / "manifest.json").read_bytes()
    whats = [told["what"] for told in attempt.data("delivery")]
    assert whats == ["checkpoint-1", "checkpoint-2", "results"]
    lines = [line.type for line in attempt.lines()]
    assert lines.index("delivery") < max(index for index, name in enumerate(lines) if name == "metrics")


def test_a_layer_without_a_kohya_name_is_told_before_the_training(start: AttemptStarter) -> None:
    attempt = start(**SHORT, lora_format="kohya", peft_lora_target_modules=["norm_out.linear"])
    assert attempt.run() == ExitCode.BAD_CONFIG
    [failed] = attempt.data("failed")
    assert "norm_out.linear" in failed["message"]
    assert attempt.data("metrics") == []


def a_file(folder: Path) -> OutgoingFile:
    (folder / "lora").write_bytes(b"weights")
    return OutgoingFile(folder / "lora", "sub/lora")


def test_a_folder_takes_files_again_and_keeps_what_is_there(tmp_path: Path) -> None:
    store = FolderStore(FolderTarget(name="digits"), (tmp_path / "root",))
    stored = store.put(a_file(tmp_path))
    there = tmp_path / "root" / "digits" / "sub" / "lora"
    before = there.stat().st_ino
    assert store.put(a_file(tmp_path)) == stored
    assert (there.read_bytes(), there.stat().st_ino) == (b"weights", before)
    assert [path.name for path in there.parent.iterdir()] == ["lora"]


def test_a_folder_that_is_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root" / "digits").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "digits" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UploadRefused, match="leads out"):
        FolderStore(FolderTarget(name="digits"), (tmp_path / "root",)).put(a_file(tmp_path))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_without_allowed_roots_no_folder_is_written(tmp_path: Path) -> None:
    with pytest.raises(UploadRefused, match="TRAINER_PUBLISH_ROOTS"):
        FolderStore(FolderTarget(name="digits"), ()).put(a_file(tmp_path))


def test_credentials_are_read_by_name_and_never_shown() -> None:
    environ = {
        "HF_TOKEN": "hf_secretvalue", "AWS_ACCESS_KEY_ID": "AKIASECRET", "AWS_SECRET_ACCESS_KEY": "aws_secretvalue",
        "B2_APPLICATION_KEY_ID": "b2_secretid", "B2_APPLICATION_KEY": "b2_secretvalue", "TRAINER_PUBLISH_ROOTS": "/a:b",
    }  # fmt: skip
    outside = outside_from(environ)
    assert set(outside.secrets()) == {value for name, value in environ.items() if name != "TRAINER_PUBLISH_ROOTS"}
    assert "secret" not in repr(outside).replace("secret_access_key", "").lower()
    assert outside.roots == (Path("/a"),)
    assert outside_from({"AWS_ACCESS_KEY_ID": "half of a pair"}).bucket is None
