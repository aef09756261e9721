"""What a trainer is handed follows from the recorded request alone."""

from datetime import UTC, datetime
from uuid import UUID

from services.provider_bridge.domain.provider_status import WORDS, RunStatus, UnknownWord, read_word
from services.provider_bridge.domain.run_spec import build_run_spec
from shared.contracts.attempt import AttemptRequested, Quote
from shared.contracts.job import Checkpoint, CheckpointFile, PackedDataset

ATTEMPT_ID = UUID("01939b70-0000-7000-8000-000000000001")
JOB_ID = UUID("01939b70-0000-7000-8000-000000000002")


def a_request(resume: Checkpoint | None = None) -> AttemptRequested:
    return AttemptRequested(
        job_id=JOB_ID,
        attempt_number=2,
        provider="local",
        quote=Quote(hardware="local", price_micro_usd_per_hour=0),
        config={"--max_train_steps": 5},
        dataloader=[{"id": "pictures"}],
        datasets=[PackedDataset(dataset_id="pictures", sha256="ab" * 32, size_bytes=7, file_count=1)],
        resume=resume,
        requested_at=datetime(2026, 11, 22, tzinfo=UTC),
    )


def test_datasets_are_fetched_by_their_digest_and_outputs_go_under_the_job() -> None:
    spec = build_run_spec(ATTEMPT_ID, a_request(), "http://127.0.0.1:8001")
    [dataset] = spec.datasets
    assert (dataset.id, dataset.url) == ("pictures", "/api/v1/datasets/" + "ab" * 32)
    assert (spec.output_bucket, spec.output_prefix) == ("outputs", str(JOB_ID))
    assert (spec.job_id, spec.attempt_id, spec.attempt_number) == (str(JOB_ID), str(ATTEMPT_ID), 2)
    assert spec.resume is None


def test_resume_files_are_fetched_from_the_outputs_bucket_by_their_escaped_key() -> None:
    file = CheckpointFile(name="state.json", sha256="cd" * 32, size_bytes=3, object_key="job/checkpoint 4/state.json")
    spec = build_run_spec(ATTEMPT_ID, a_request(Checkpoint(step=4, files=[file])), "http://x")
    assert spec.resume is not None
    assert spec.resume.step == 4
    assert spec.resume.files[0].url == "/api/cloud/storage/outputs/job/checkpoint%204/state.json"


def test_unknown_provider_word_is_a_result_of_its_own() -> None:
    assert read_word("local", "running") is RunStatus.RUNNING
    assert read_word("local", "Running") == UnknownWord(provider="local", word="Running")
    assert read_word("nowhere", "running") == UnknownWord(provider="nowhere", word="running")
    assert set(WORDS["local"].values()) == set(RunStatus)
