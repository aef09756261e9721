"""The plain container entry: what it reads, how it ends, and what becomes of the machine."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded.process import free_port
from shared.contracts.run import ExitCode
from tests.simulators.hugging_face import TOKEN, HuggingFace
from tests.simulators.loopback import Answer, Call, Loopback
from tests.support.system import await_value
from tests.vendors.programs import ROOT, TRAINER_PYTHON, environment, running

WRONG = {"config": {"model_family": "flux", "lora_rnk": 4}}
"""A job that ends as soon as the trainer looks at it."""


def ended(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [str(TRAINER_PYTHON), "-m", "trainer.entry.container"]
    env = environment(folder / "work", **environ)
    return subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("form", ["plain", "base64", "file"])
def test_an_input_comes_plainly_coded_or_in_a_file(tmp_path: Path, form: str) -> None:
    text = json.dumps(WRONG)
    (tmp_path / "input.json").write_text(text, encoding="utf-8")
    given = {
        "plain": {"TUNEWRIGHT_INPUT": text},
        "base64": {"TUNEWRIGHT_INPUT_BASE64": base64.b64encode(text.encode()).decode()},
        "file": {"TUNEWRIGHT_INPUT_FILE": str(tmp_path / "input.json")},
    }
    done = ended(tmp_path, **given[form])
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "lora_rnk is not a known key" in done.stderr
    assert "lora_rank" in done.stderr


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "one of TUNEWRIGHT_RUN_SPEC and TUNEWRIGHT_INPUT"),
        ({"TUNEWRIGHT_INPUT": "{}", "TUNEWRIGHT_RUN_SPEC": "{}"}, "one of TUNEWRIGHT_RUN_SPEC and TUNEWRIGHT_INPUT"),
        ({"TUNEWRIGHT_INPUT": "{"}, "TUNEWRIGHT_INPUT is not JSON"),
        ({"TUNEWRIGHT_INPUT_FILE": "/no/such/file"}, "TUNEWRIGHT_INPUT_FILE"),
        ({"TUNEWRIGHT_PRIVATE_NETWORKS": "office"}, "TUNEWRIGHT_PRIVATE_NETWORKS"),
    ],
    ids=["none", "both", "json", "file", "networks"],
)
def test_what_cannot_be_read_ends_with_64_and_the_variables_name(
    tmp_path: Path, environ: dict[str, str], told: str
) -> None:
    done = ended(tmp_path, **environ)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pod_ends_itself_after_the_run_and_tries_until_it_may(tmp_path: Path) -> None:
    asked: list[Call] = []

    def route(call: Call) -> Answer:
        asked.append(call)
        return Answer(503, {}) if len(asked) == 1 else Answer(204, body=b"")

    with Loopback(route) as api:
        env = environment(
            tmp_path / "work",
            TUNEWRIGHT_INPUT=json.dumps(WRONG),
            TUNEWRIGHT_AT_END="terminate-runpod-pod",
            TUNEWRIGHT_RUNPOD_API_URL=api.url,
            RUNPOD_POD_ID="pod-7",
            RUNPOD_API_KEY="pod-scoped-key",
            TRAINER_BACKOFF_MIN_S="0.01",
        )
        command = [str(TRAINER_PYTHON), "-m", "trainer.entry.container"]
        with running(command, env, tmp_path, lambda: len(asked) == 2) as process:
            assert process.poll() is None, "it waits to be ended: a command that ends is started again"
    assert {(call.method, call.path) for call in asked} == {("DELETE", "/v2/pods/pod-7")}
    assert asked[0].headers["authorization"] == "Bearer pod-scoped-key"


def test_a_space_shows_the_end_and_pauses_itself(tmp_path: Path) -> None:
    with HuggingFace() as hub:
        hub.add_space("someone/space", {})
        hub.failures = 1
        port = free_port()
        env = environment(
            tmp_path / "work",
            TUNEWRIGHT_INPUT=json.dumps(WRONG),
            PORT=str(port),
            SPACE_ID="someone/space",
            HF_TOKEN=TOKEN,
            HF_ENDPOINT=hub.url,
            TRAINER_BACKOFF_MIN_S="0.01",
        )

        def page() -> dict[str, Any] | None:
            try:
                return httpx.get(f"http://127.0.0.1:{port}", timeout=2).json()
            except httpx.TransportError:
                return None

        command = [str(TRAINER_PYTHON), "-m", "trainer.entry.hf_space"]
        with running(command, env, tmp_path, lambda: page() is not None) as process:
            await_value(60, "it is paused", lambda: hub.paused)
            assert page() == {"state": "ended", "exit_code": ExitCode.BAD_CONFIG}
            assert process.poll() is None
        assert hub.paused == ["someone/space"]
