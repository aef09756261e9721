"""The RunPod handler under the vendor's own programs: the local API server, and the worker loop with the client."""

import base64
import json
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded.process import free_port
from shared.contracts.run import ExitCode
from tests.simulators.loopback import Answer, Loopback
from tests.simulators.runpod_queue import ENDPOINT, FINAL, KEY, RunPodQueue
from tests.support.system import await_value
from tests.vendors.conftest import LORA, SHORT_DATALOADER, assert_nowhere, sha256, short_config
from tests.vendors.programs import ROOT, environment, running, trainers_in, vendors_python

HANDLER = str(ROOT / "deploy" / "runpod" / "handler.py")
ATTEMPT_TOKEN = "attempt-token-2b91c04e"
BUCKET_SECRET = "bucket-secret-5d0c1e77"
_UNCHECKED = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, Signature=0"}
"""moto wants a signature and does not check it."""


def answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=2)
    except httpx.TransportError:
        return False
    return True


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, str]]:
    """An S3 server of the vendor's kind with one bucket; what an endpoint is configured with to use it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    folder = tmp_path_factory.mktemp("moto")
    command = [vendors_python(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, environment(folder), folder, lambda: answers(url)):
        httpx.put(f"{url}/results", headers=_UNCHECKED).raise_for_status()
        yield {
            "BUCKET_ENDPOINT_URL": url,
            "BUCKET_ACCESS_KEY_ID": "key",
            "BUCKET_SECRET_ACCESS_KEY": BUCKET_SECRET,
            "BUCKET_NAME": "results",
        }


@dataclass
class Worker:
    """A real worker process on a queue of ours."""

    queue: RunPodQueue
    folder: Path
    work_dir: Path

    def client(self, code: str) -> Any:
        """Runs the vendor's client on the endpoint; what it printed last, from JSON."""
        program = (
            f"import json, runpod; runpod.api_key = {KEY!r}; endpoint = runpod.Endpoint({ENDPOINT!r})\n"
            f"def say(value): print(json.dumps(value))\n{code}"
        )
        env = environment(self.work_dir, RUNPOD_ENDPOINT_BASE_URL=self.queue.api_url)
        done = subprocess.run([vendors_python(), "-c", program], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def worker(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Generator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    with RunPodQueue() as queue:
        env = environment(folder / "work", TRAINER_DRAIN_S="1", **bucket, **queue.worker_environment())

        def polls() -> bool:
            return any("/job-take/" in call.path for call in queue.calls)

        with running([vendors_python(), HANDLER], env, folder, polls):
            yield Worker(queue, folder, folder / "work")


def test_the_local_api_server_runs_a_job_whole_and_gives_the_command_lines_lora(
    tmp_path: Path, job_input: dict[str, Any], lora_of_the_command_line: str
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [vendors_python(), HANDLER, "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
    with running(command, environment(tmp_path / "work"), tmp_path, lambda: answers(f"{url}/docs")):
        done = httpx.post(f"{url}/runsync", json={"input": job_input}, timeout=240).json()
        refused = httpx.post(f"{url}/runsync", json={"input": {**job_input, "dataset_uri": "x"}}, timeout=60).json()
    assert done["status"] == "COMPLETED", done
    output = done["output"]
    content = base64.b64decode(output["model_checkpoint"].partition(";base64,")[2])
    assert sha256(content) == lora_of_the_command_line
    assert isinstance(output["metrics"]["loss"], float)
    assert output["metrics"]["elapsed_time"].endswith("s")
    assert "[phase] training" in output["training_logs"]
    assert "1 files of other kinds were left out: squares/notes.docx" in output["training_logs"]
    assert refused["status"] == "FAILED"
    assert "Did you mean dataset_url?" in refused["error"]


def test_a_queued_job_ends_as_urls_that_anyone_can_fetch(
    worker: Worker, dataset_zip: bytes, lora_of_the_command_line: str
) -> None:
    with Loopback(lambda _call: Answer(body=dataset_zip)) as site:
        body = {
            "dataset_url": f"{site.url}/set.zip?signature=unseen",
            "config": short_config(),
            "dataloader": SHORT_DATALOADER,
            "job_id": "same-job",
        }
        job_id = worker.client(f"say(endpoint.run({{'input': {body!r}}}).job_id)")
        ended = worker.queue.await_end(job_id)
    assert ended.status == "COMPLETED", ended.error
    assert ended.stop_pod, "a worker is refreshed after a job"
    shown = worker.client(f"say(runpod.endpoint.runner.Job({ENDPOINT!r}, {job_id!r}, endpoint.rp_client).output())")
    assert shown == ended.output
    model = httpx.get(shown["model_checkpoint"]).raise_for_status()
    assert sha256(model.content) == lora_of_the_command_line
    assert sorted(shown["files"]) == ["output/README.md", "output/manifest.json", f"output/{LORA}"]
    assert "[phase] training" in httpx.get(shown["training_logs"]).text
    assert any(each.get("phase") == "training" for each in ended.progress), ended.progress
    assert any(each.get("percent") == 100.0 for each in ended.progress), ended.progress
    assert not (worker.work_dir / "same-job").exists(), "delivered, so nothing stays"


def test_a_cancelled_job_on_s3_data_saves_and_its_trainer_is_gone(
    worker: Worker, bucket: dict[str, str], dataset_zip: bytes
) -> None:
    place = f"{bucket['BUCKET_ENDPOINT_URL']}/results/sets/squares.zip"
    httpx.put(place, content=dataset_zip, headers=_UNCHECKED).raise_for_status()
    config = short_config(num_train_epochs=0, max_train_steps=100_000)
    long = {"job_id": "cancelled", "dataset_url": "s3://results/sets/squares.zip", "config": config}
    job = worker.queue.submit({"input": long})

    def trains() -> bool:
        return any(each.get("step") for each in job.progress)

    worker.queue.wait_until(lambda: trains() or job.status in FINAL, "the first step", limit_s=240)
    assert trainers_in(worker.work_dir), job.error
    handle = f"runpod.endpoint.runner.Job({ENDPOINT!r}, {job.id!r}, endpoint.rp_client)"
    assert worker.client(f"job = {handle}; job.cancel(); say(job.status())") == "CANCELLED"
    await_value(60, "the trainer is gone", lambda: not trainers_in(worker.work_dir))
    assert list((worker.work_dir / "cancelled" / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"config": {"model_name": "x", "lora_rnk": 4, "model_family": "flux"}}, "lora_rank"),
        ({"dataset_files": [], "dataset_url": "http://169.254.169.254/latest/meta-data"}, "not public"),
        ({"dataset_files": [], "dataset_url": "file:///etc/passwd"}, "neither a URL"),
        ({"dataset_files": [{"name": "../../x.png", "data": "AAAA"}]}, "not a file name"),
        ({"job_id": "../../etc"}, "not a name"),
    ],
    ids=["config", "metadata-service", "file-url", "traversal", "job-id"],
)
def test_a_wrong_input_fails_the_job_with_what_to_do(
    worker: Worker, job_input: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    job = worker.queue.submit({"input": {**job_input, "job_id": f"bad-{told.split(maxsplit=1)[0]}", **changed}})
    ended = worker.queue.await_end(job.id)
    assert ended.status == "FAILED"
    assert told in str(ended.error)
    assert "Traceback" not in str(ended.error)


def test_a_run_of_a_control_plane_answers_with_its_exit_code(worker: Worker) -> None:
    spec: dict[str, Any] = {
        "job_id": "job",
        "attempt_id": "attempt-1",
        "attempt_number": 1,
        "gateway_url": f"http://127.0.0.1:{free_port()}",
        "config": {"model_family": "flux", "lora_rnk": 4},
        "dataloader": [],
        "output_prefix": "job",
    }
    job = worker.queue.submit({"input": {"run_spec": spec, "token": ATTEMPT_TOKEN, "label": "tw-a-run"}})
    ended = worker.queue.await_end(job.id)
    assert ended.status == "FAILED"
    assert (ended.output["exit_code"], ended.output["label"]) == (ExitCode.BAD_CONFIG, "tw-a-run")
    assert {told["label"] for told in ended.progress} == {"tw-a-run"}, "a job is known by it while it runs"
    assert str(ended.error).startswith("exit 64 (bad_config): ")
    assert (worker.work_dir / "attempt-1" / "events.jsonl").exists()


def test_no_secret_is_in_any_file_of_the_worker(worker: Worker) -> None:
    assert_nowhere([KEY, BUCKET_SECRET, ATTEMPT_TOKEN, "signature=unseen"], worker.folder)
