"""try and serve: what they ask of the trainer's program, and how each refusal reads. The gateway is a stand-in."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.vllm import VllmSimulator
from tests.support.tiny_llm import write_adapter
from tests.unit.cli.conftest import Answer, Run, Server, as_json

JOB = "01a20118-37ae-7469-8b47-45a866170181"
PICTURES = "pytorch_lora_weights.safetensors"
KEY = "a-key-nobody-may-see"
CONFIG = {
    "--model_type": "lora",
    "--model_family": "flux",
    "--pretrained_model_name_or_path": "/models/flux",
    "--max_train_steps": 5,
    "--tokenizer_max_length": 16,
    "--validation_resolution": "64x32,1024",
    "--validation_guidance": 3.5,
    "--validation_num_inference_steps": 9,
    "--validation_seed": 7,
    "--mixed_precision": "no",
}
LOADER = [{"id": "d", "type": "local", "instance_data_dir": "/data", "caption_strategy": "filename"}]


def finished(server: Server, files: dict[str, bytes], *, status: str = "completed", name: str = "My Run!") -> None:
    """A job with these stored files, as the gateway tells it."""
    listed = [
        {
            "name": path,
            "bucket": "outputs",
            "object_key": f"{JOB}/{path}",
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for path, content in files.items()
    ]
    submitted = {"config": CONFIG, "dataloader": LOADER, "tracker_run_name": name}
    server.on(f"GET /api/v1/jobs/{JOB}", as_json({"job": {"job_id": JOB, "status": status}}))
    server.on(f"GET /api/v1/jobs/{JOB}/artifacts", as_json({"artifacts": listed}))
    server.on(f"GET /api/v1/jobs/{JOB}/events", as_json({"events": [{"type": "job.submitted.v1", "data": submitted}]}))
    for path, content in files.items():
        server.on(f"GET /api/cloud/storage/outputs/{JOB}/{path}", Answer(200, content))


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the trainer's Python: it writes its arguments and environment here and says what it is given."""
    program, record = tmp_path / "trainer-python", tmp_path / "told.json"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, pathlib, sys\n"
        f"record = pathlib.Path({str(record)!r})\n"
        "record.write_text(json.dumps({'argv': sys.argv[1:], 'environ': dict(os.environ)}))\n"
        "sys.stdout.write(os.environ['STAND_IN_SAYS'])\n"
        "sys.stderr.write('its last words')\n"
        "raise SystemExit(int(os.environ['STAND_IN_CODE']))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("BRIDGE_TRAINER_PYTHON", str(program))
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", KEY)
    says(monkeypatch)
    return record


def says(monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any], code: int = 0) -> None:
    monkeypatch.setenv("STAND_IN_SAYS", "".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.setenv("STAND_IN_CODE", str(code))


def options(record: Path) -> dict[str, str]:
    argv: list[str] = json.loads(record.read_text())["argv"]
    assert argv[:2] == ["-m", "trainer"]
    return dict(argument.removeprefix("--").split("=", 1) for argument in argv[3:] if "=" in argument)


def test_a_picture_is_asked_for_as_the_jobs_own_validation_was(
    server: Server, run: Run, told: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finished(server, {PICTURES: b"weights", f"checkpoint-5/{PICTURES}": b"older", f"ema/{PICTURES}": b"mean"})
    says(monkeypatch, {"type": "picture", "path": "/p/a.png", "seed": 7}, {"type": "stage", "text": "x"})
    ended = run("try", JOB, "a red seven = 7", "-o", str(tmp_path / "a.png"), "--weight", "0.5")
    assert (ended.code, ended.out) == (0, "/p/a.png\n"), ended.err
    asked = options(told)
    wanted = {
        "prompt": "a red seven = 7", "base": "/models/flux", "family": "flux", "seed": "7", "steps": "9",
        "guidance": "3.5", "width": "64", "height": "32", "text-length": "16", "mixed-precision": "no",
        "weight": "0.5", "sides": "with", "output": str(tmp_path / "a.png"), "fact": f"job_id={JOB}",
    }  # fmt: skip
    assert {name: asked.get(name) for name in wanted} == wanted
    assert Path(asked["lora"]).read_bytes() == b"weights"
    assert KEY not in told.read_text()


def test_what_is_said_wins_and_what_is_here_is_not_fetched_again(server: Server, run: Run, told: Path) -> None:
    finished(server, {PICTURES: b"weights", f"ema/{PICTURES}": b"mean"})
    given = ("--ema", "--seed", "1", "--width", "128", "--base", "/elsewhere", "--compare", "--json")
    assert [run("try", JOB, "x", *given).json()["pictures"] for _ in range(2)] == [[], []]
    asked = options(told)
    assert (asked["seed"], asked["width"], asked["base"], asked["sides"]) == ("1", "128", "/elsewhere", "both")
    assert Path(asked["lora"]).read_bytes() == b"mean"
    assert len(server.requests(f"GET /api/cloud/storage/outputs/{JOB}/ema/{PICTURES}")) == 1


def test_a_language_model_answers_in_words(
    server: Server, run: Run, told: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", base="/models/llm")
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    finished(server, {**files, "tokenizer.json": b"{}"})
    lines = [
        {"type": "text", "text": text, "with_lora": side, "seed": 42, "tokens": 1}
        for text, side in (("base", False), ("tuned", True))
    ]
    says(monkeypatch, *lines)
    ended = run("try", JOB, "who?", "--compare", "--max-tokens", "9")
    assert (ended.code, ended.out) == (0, "base\ntuned\n"), ended.err
    asked = options(told)
    assert (asked["max-new-tokens"], asked["sides"]) == ("9", "both")
    assert sorted(path.name for path in Path(asked["adapter"]).iterdir()) == sorted([*files, "tokenizer.json"])
    wrong = run("try", JOB, "who?", "--steps", "3")
    assert wrong.code == 2
    assert "--steps means nothing here: this job's model answers in words" in wrong.err


def test_a_peft_folder_that_is_not_for_words_is_drawn_with(
    server: Server, run: Run, told: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "pixart", base="x", task_type=None)
    finished(server, {path.name: path.read_bytes() for path in (tmp_path / "pixart").iterdir()})
    ended = run("try", JOB, "x", "--steps", "3")
    assert ended.code == 0, ended.err
    asked = options(told)
    assert asked["steps"] == "3"
    assert sorted(path.name for path in Path(asked["lora"]).parent.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ({PICTURES: b"w"}, "running", "is running; it has no finished model"),
        ({"model.safetensors": b"w"}, "completed", "model.safetensors"),
        ({}, "completed", "the job delivered no LoRA"),
        ({f"checkpoint-5/{PICTURES}": b"w"}, "completed", "the job delivered no LoRA"),
        ({"adapter_model.safetensors": b"w"}, "completed", "without its adapter_config.json"),
    ],
)
def test_a_job_without_a_finished_lora_is_refused(
    server: Server, run: Run, told: Path, files: dict[str, bytes], status: str, said: str
) -> None:
    finished(server, files, status=status)
    ended = run("try", JOB, "x")
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    assert not told.exists()


def test_what_the_trainer_refuses_is_said_in_its_words(
    server: Server, run: Run, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(server, {PICTURES: b"weights"})
    says(monkeypatch, {"type": "failed", "kind": "unreachable", "message": "no base", "advice": "give one"}, code=69)
    ended = run("try", JOB, "x")
    assert (ended.code, ended.out) == (1, "")
    assert "no base" in ended.err
    assert "give one" in ended.err
    says(monkeypatch, code=70)
    broken = run("try", JOB, "x")
    assert broken.code == 1
    assert "the trainer broke off (exit code 70)" in broken.err
    assert "its last words" in broken.err
    assert told.exists()


def test_a_machine_without_the_trainer_is_told_so(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finished(server, {PICTURES: b"weights"})
    monkeypatch.setenv("BRIDGE_TRAINER_PYTHON", str(tmp_path / "nothing"))
    ended = run("try", JOB, "x")
    assert ended.code == 1
    assert "just setup-trainer" in ended.err


# ---- serve -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmSimulator]:
    made = VllmSimulator(base_path="/srv/models/tiny", key=KEY)
    monkeypatch.setenv("SERVE_API_KEY", KEY)
    yield made
    made.close()


@pytest.fixture
def text_job(server: Server, tmp_path: Path) -> dict[str, bytes]:
    write_adapter(tmp_path / "adapter", base="/models/tiny")
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    finished(server, files)
    return files


def test_a_finished_adapter_is_served_under_the_jobs_name_and_again_after_a_restart(
    run: Run, vllm: VllmSimulator, text_job: dict[str, bytes], tmp_path: Path
) -> None:
    command = ("serve", JOB, "--vllm", vllm.url, "--adapter-dir", str(tmp_path / "shared"), "--json")
    states = [run(*command).json()["servers"][0]["state"] for _ in range(2)]
    vllm.restart()
    states.append(run(*command).json()["servers"][0]["state"])
    assert states == ["loaded", "already loaded", "loaded"]
    (path, digest) = vllm.adapters["My-Run"]
    assert digest == hashlib.sha256(text_job["adapter_model.safetensors"]).hexdigest()
    assert Path(path).parent == tmp_path / "shared"
    removed = run("serve", JOB, "--vllm", vllm.url, "--adapter-dir", str(tmp_path / "shared"), "--remove", "--json")
    assert removed.json()["servers"][0]["was_there"] is True
    assert not vllm.adapters
    assert not Path(path).exists()


def test_a_refusal_of_the_server_is_an_error_with_advice(
    run: Run, vllm: VllmSimulator, text_job: dict[str, bytes], tmp_path: Path
) -> None:
    assert text_job
    vllm.allows_updates = False
    ended = run("serve", JOB, "--vllm", vllm.url, "--adapter-dir", str(tmp_path / "shared"))
    assert (ended.code, ended.out) == (1, "")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve" in ended.err.replace("\n", " ")
    assert KEY not in ended.err


def test_a_model_of_pictures_and_a_missing_server_are_refused(server: Server, run: Run) -> None:
    finished(server, {PICTURES: b"weights"})
    assert run("serve", JOB).code == 2
    ended = run("serve", JOB, "--vllm", "http://127.0.0.1:1")
    assert ended.code == 1
    assert "trained a model of pictures" in ended.err
    assert "SERVE_API_KEY" not in os.environ
