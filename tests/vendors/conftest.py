"""One small job in every spelling, and what the command line makes of it: what every provider's entry must equal."""

import base64
import hashlib
import io
import json
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.vendors.programs import ROOT, TRAINER_PYTHON, environment

BASE = ROOT / "trainer" / "fixtures" / "tiny-flux-digits"
JOB_ID = "same-job"
LORA = "pytorch_lora_weights.safetensors"
_TINY = {
    "resolution": 32,
    "train_batch_size": 4,
    "num_train_epochs": 1,
    "checkpointing_steps": 500,
    "learning_rate": 1e-3,
    "seed": 11,
    "aspect_bucket_alignment": 8,
    "tokenizer_max_length": 16,
    "lora_rank": 2,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "validation_disable": True,
    "disable_benchmark": True,
}


def short_config(**more: Any) -> dict[str, Any]:
    """In the spelling of brief 004: the base as `model_name`, the family not said."""
    return {"model_name": str(BASE), **_TINY, **more}


SHORT_DATALOADER = {"caption_extension": ".txt", "shuffle_tags": True, "keep_tokens": 1}
"""As brief 004 prints it."""


def full_dataloader(folder: Path) -> list[dict[str, Any]]:
    """The same dataloader with everything said."""
    shuffle = {"enable": True, "count": 4, "split_on": "comma", "position_start": 1}
    return [
        {
            "id": "dataset",
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(folder),
            "caption_strategy": "textfile",
            "caption_extension": ".txt",
            "caption_shuffle": shuffle,
        }
    ]


def full_config() -> dict[str, Any]:
    """The same config with everything said."""
    return {"pretrained_model_name_or_path": str(BASE), "model_family": "flux", "model_type": "lora", **_TINY}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _png(red: int, green: int, blue: int) -> bytes:
    """A picture of 32 x 32 pixels in one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes((red, green, blue)) * 32) * 32
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Eight pictures with captions, by file name."""
    files: dict[str, bytes] = {}
    for number in range(8):
        files[f"{number}.png"] = _png(30 * number, 255 - 30 * number, 90)
        files[f"{number}.txt"] = f"a square, colour {number}, flat\n".encode()
    return files


@pytest.fixture(scope="session")
def dataset_zip(pictures: dict[str, bytes]) -> bytes:
    """The pictures as people send them: in a folder of a zip, with what a file manager adds."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in pictures.items():
            archive.writestr(f"squares/{name}", content)
        archive.writestr("__MACOSX/squares/._0.png", b"noise")
        archive.writestr("squares/notes.docx", b"not for training")
    return packed.getvalue()


@pytest.fixture(scope="session")
def job_input(dataset_zip: bytes) -> dict[str, Any]:
    """A whole job in one object, the dataset as base64."""
    data = base64.b64encode(dataset_zip).decode()
    return {
        "job_id": JOB_ID,
        "dataset_files": [{"name": "squares.zip", "data": data}],
        "config": short_config(),
        "dataloader": SHORT_DATALOADER,
    }


@pytest.fixture(scope="session")
def folder_of_pictures(pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def lora_of_the_command_line(folder_of_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the LoRA that `python -m trainer run` makes of the job."""
    folder = tmp_path_factory.mktemp("command-line")
    spec = {
        "job_id": JOB_ID,
        "attempt_id": "by-hand",
        "attempt_number": 1,
        "gateway_url": None,
        "config": full_config(),
        "dataloader": full_dataloader(folder_of_pictures),
        "output_prefix": JOB_ID,
    }
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [str(TRAINER_PYTHON), "-m", "trainer", "run", "--offline", "--device", "cpu"]
    command += ["--spec", str(folder / "spec.json"), "--work-dir", str(folder / "work")]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sha256((folder / "work" / "output" / LORA).read_bytes())


def assert_nowhere(secrets: list[str], *folders: Path) -> None:
    """No file below the folders holds any of the secrets."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, f"{path} holds a secret"
