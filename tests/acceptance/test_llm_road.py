"""The road of a language model: the printed config by HTTP, predictions while it learns, an adapter at the end."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import ROOT, TRAINER_PYTHON, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PRINTED: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-7B",
    "training": {"method": "sft", "num_epochs": 3, "learning_rate": 5e-4, "lora_r": 16, "lora_alpha": 32},
    "predictions": {"enabled": True, "sample_count": 5, "sample_frequency": "epoch"},
}
_BUILD = """
import sys
from pathlib import Path
sys.path[:0] = [".", "tests/trainer"]
from tiny.dialogues import chat, pairs, write_jsonl
from tiny.qwen2 import build_qwen2
folder = Path(sys.argv[1])
rows = pairs()[:60]
build_qwen2(folder / "qwen", [" ".join(row) for row in rows])
write_jsonl(folder / "rows" / "chat.jsonl", [chat(*row) for row in rows])
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 of the real architecture, and sixty real dialogues as JSONL."""
    folder = tmp_path_factory.mktemp("llm")
    command = [str(TRAINER_PYTHON), "-W", "ignore", "-c", _BUILD, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def tuned(system: System, material: Path) -> dict[str, Any]:
    """The finished job of the printed config, the model's path apart; its dataset is one file."""
    rows = material / "rows" / "chat.jsonl"
    entry = {"id": "chats", "type": "local", "dataset_type": "text", "instance_data_dir": str(rows)}
    job_id = system.submit({"config": {**PRINTED, "model": str(material / "qwen")}, "dataloader_config": [entry]})
    return system.await_status(job_id, "completed", limit_s=400)


def test_the_printed_config_trains_and_its_predictions_are_the_documented_records(
    system: System, tuned: dict[str, Any]
) -> None:
    job_id = tuned["job_id"]
    records = system.http.get(f"/api/training/predictions/{job_id}").raise_for_status().json()["predictions"]
    steps = sorted({record["step"] for record in records})
    assert len(steps) == 4, "of the base, and after each of three epochs"
    assert len(records) == 4 * 5
    documented = {
        "job_id", "epoch", "step", "sample_id", "prompt", "generated", "bleu_score", "rouge_score",
    }  # fmt: skip
    assert all(documented <= record.keys() for record in records)
    assert {record["job_id"] for record in records} == {job_id}
    assert all(0 <= record[name] <= 1 for record in records for name in ("bleu_score", "rouge_score"))


def test_metrics_hold_the_loss_of_held_out_rows_which_falls(system: System, tuned: dict[str, Any]) -> None:
    answer = system.http.get(f"/api/training/metrics/{tuned['job_id']}", params={"limit": 1000}).raise_for_status()
    held_out = [record["eval_loss"] for record in answer.json()["metrics"] if record["eval_loss"] is not None]
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0]


def test_the_adapter_and_its_tokenizer_are_downloaded(system: System, tuned: dict[str, Any], tmp_path: Path) -> None:
    done = system.tunewright("artifacts", "get", tuned["job_id"], "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "manifest.json"} <= names


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"training": {"method": "sft", "lora_rr": 16}}, "training.lora_rr", "Did you mean lora_r?"),
        ({"predictions": {"temperature": 1}}, "predictions.temperature", "greedy"),
    ],
)
def test_a_wrong_key_is_refused_at_submit(system: System, change: dict[str, Any], field: str, said: str) -> None:
    body = {"config": {**PRINTED, **change}, "dataloader_config": [{"id": "a", "instance_data_dir": "/data"}]}
    answer = system.http.post("/api/cloud/jobs/submit", params={"provider": "local"}, json=body)
    assert answer.status_code == 400
    assert [(error["field"], said in error["advice"]) for error in answer.json()["errors"]] == [(field, True)]
