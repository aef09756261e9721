"""The Cog entries under Cog's own server: train, cancel, fail, and predict with what was trained."""

import base64
import io
import json
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded.process import free_port
from tests.simulators.loopback import Answer, Call, Loopback
from tests.support.system import await_value
from tests.vendors.conftest import JOB_ID, LORA, SHORT_DATALOADER, assert_nowhere, sha256, short_config
from tests.vendors.programs import ROOT, environment, running, trainers_in, vendors_python

FOLDER = ROOT / "deploy" / "replicate"
FINAL = {"succeeded", "failed", "canceled"}
HUB_TOKEN = "hf_secret_of_the_operator_77"


@dataclass
class Replicate:
    """The other side of a Cog container: takes its webhooks and its files."""

    loopback: Loopback
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def end_of(self, run_id: str, limit_s: float = 180) -> dict[str, Any]:
        """The last webhook of a run."""
        told = self.told.setdefault(run_id, [])
        self.loopback.wait_until(lambda: bool(told) and told[-1]["status"] in FINAL, f"{run_id} ends", limit_s)
        return told[-1]


@pytest.fixture(scope="module")
def replicate() -> Generator[Replicate]:
    def route(call: Call) -> Answer:
        if call.method == "PUT":
            side.files[call.path] = call.body
            return Answer(200, {})
        side.told.setdefault(call.path.strip("/"), []).append(call.json())
        return Answer(200, {})

    with Loopback(route) as loopback:
        side = Replicate(loopback)
        yield side


@contextmanager
def cog(mode: str, stub: str, folder: Path, upload_url: str) -> Generator[httpx.Client]:
    """Cog's server around one of our entries; gives a client of it."""
    port = free_port()
    env = environment(folder / "work", PORT=str(port), HF_TOKEN=HUB_TOKEN, **{f"COG_{mode.upper()}_TYPE_STUB": stub})
    command = [vendors_python(), "-m", "cog.server.http", "--host", "127.0.0.1", "--x-mode", mode]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240)

    def ready() -> bool:
        try:
            return client.get("/health-check").json()["status"] == "READY"
        except httpx.TransportError:
            return False

    with client, running([*command, "--upload-url", upload_url], env, folder, ready):
        yield client


@dataclass
class Trainings:
    """A running training container."""

    http: httpx.Client
    folder: Path
    replicate: Replicate

    def start(self, run_id: str, given: dict[str, Any]) -> None:
        """Starts a training that tells its webhook."""
        body = {"input": given, "webhook": f"{self.replicate.loopback.url}/{run_id}"}
        answer = self.http.put(f"/trainings/{run_id}", json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202, answer.text

    def until_idle(self) -> None:
        """Cog has one slot; a run that has told its end may not have left it yet."""
        await_value(60, "the slot is free", lambda: self.http.get("/health-check").json()["status"] == "READY")


@pytest.fixture(scope="module")
def trainings(replicate: Replicate, tmp_path_factory: pytest.TempPathFactory) -> Generator[Trainings]:
    folder = tmp_path_factory.mktemp("cog-train")
    with cog("train", f"{FOLDER}/train.py:train", folder, f"{replicate.loopback.url}/up/") as client:
        yield Trainings(client, folder, replicate)


@pytest.fixture(scope="module")
def given(dataset_zip: bytes) -> dict[str, Any]:
    """The job as Replicate's users send it: objects as JSON text, the dataset as a file."""
    data = base64.b64encode(dataset_zip).decode()
    loader = json.dumps(SHORT_DATALOADER)
    return {
        "config": json.dumps(short_config()),
        "dataloader": loader,
        "dataset": f"data:application/zip;base64,{data}",
        "job_id": JOB_ID,
    }


@pytest.fixture(scope="module")
def trained(trainings: Trainings, given: dict[str, Any]) -> dict[str, Any]:
    """A training that went well, as the webhook told its end."""
    trainings.start("good", given)
    return trainings.replicate.end_of("good")


def test_a_training_uploads_one_tar_with_the_command_lines_lora(
    trained: dict[str, Any], replicate: Replicate, lora_of_the_command_line: str
) -> None:
    assert trained["status"] == "succeeded", trained
    (name,) = [path for path in replicate.files if path.endswith(".tar")]
    assert trained["output"].endswith(name)
    with tarfile.open(fileobj=io.BytesIO(replicate.files[name])) as tar:
        assert sorted(tar.getnames()) == ["README.md", "logs.txt", "manifest.json", LORA]
        lora = tar.extractfile(LORA)
        assert lora is not None
        assert sha256(lora.read()) == lora_of_the_command_line


def test_the_logs_hold_one_json_line_for_each_metrics_report(trained: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in trained["logs"].splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["type"] == "metrics" and isinstance(line["loss"], float) for line in lines)
    assert "[phase] training" in trained["logs"]


def test_a_cancelled_training_is_told_as_canceled_and_its_trainer_is_gone(
    trainings: Trainings, given: dict[str, Any]
) -> None:
    trainings.until_idle()
    endless = short_config(num_train_epochs=0, max_train_steps=100_000)
    trainings.start("endless", {**given, "config": json.dumps(endless), "job_id": "endless"})
    await_value(120, "it trains", lambda: trainers_in(trainings.folder / "work"))
    assert trainings.http.post("/trainings/endless/cancel").status_code == 200
    assert trainings.replicate.end_of("endless")["status"] == "canceled"
    assert not trainers_in(trainings.folder / "work")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"config": json.dumps({"model_family": "flux", "lora_rnk": 4})}, "lora_rank"),
        ({"config": "{"}, "this is not JSON"),
        ({"dataset": None, "dataset_url": "http://10.1.2.3/set.zip"}, "not public"),
    ],
    ids=["config", "json", "private-address"],
)
def test_a_failed_training_tells_what_to_do(
    trainings: Trainings, given: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    trainings.until_idle()
    wrong = {name: value for name, value in {**given, **changed}.items() if value is not None}
    ended = trainings.http.post("/trainings", json={"input": {**wrong, "job_id": "wrong"}}).json()
    assert ended["status"] == "failed", ended
    assert told in ended["error"]


def test_no_secret_is_in_a_file_or_an_upload(trainings: Trainings, trained: dict[str, Any]) -> None:
    assert trained["status"] == "succeeded"
    assert_nowhere([HUB_TOKEN], trainings.folder)
    assert not [path for path, content in trainings.replicate.files.items() if HUB_TOKEN.encode() in content]


@pytest.fixture(scope="module")
def predictions(replicate: Replicate, tmp_path_factory: pytest.TempPathFactory) -> Generator[httpx.Client]:
    folder = tmp_path_factory.mktemp("cog-predict")
    with cog("predict", f"{FOLDER}/predict.py:Predictor", folder, f"{replicate.loopback.url}/drawn/") as client:
        yield client


def as_data(content: bytes) -> str:
    return f"data:application/x-tar;base64,{base64.b64encode(content).decode()}"


def test_a_prediction_draws_with_the_tar_that_the_training_made(
    predictions: httpx.Client, trained: dict[str, Any], replicate: Replicate
) -> None:
    assert trained["status"] == "succeeded"
    (tar,) = [content for path, content in replicate.files.items() if path.endswith(f"{JOB_ID}.tar")]
    wish = {"prompt": "a square", "lora": as_data(tar), "num_inference_steps": 2, "width": 32, "height": 32}
    done = predictions.post("/predictions", json={"input": {**wish, "seed": 3}}).json()
    assert done["status"] == "succeeded", done
    (picture,) = [content for path, content in replicate.files.items() if path.startswith("/drawn/")]
    assert picture.startswith(b"\x89PNG")
    assert len(done["output"]) == 1
    assert '"type": "picture"' in done["logs"]


def test_a_prediction_without_a_lora_in_its_archive_tells_what_to_give(predictions: httpx.Client) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"))
    wish = {"prompt": "x", "lora": as_data(packed.getvalue()), "base_model": "some/base"}
    done = predictions.post("/predictions", json={"input": wish}).json()
    assert done["status"] == "failed"
    assert "the tar that train made" in done["error"]
