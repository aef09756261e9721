"""Storage's two deciders: given events, when something is found, then events or a refusal."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.storage.domain import artifact, dataset
from services.storage.handlers import artifact_stream
from shared.contracts.artifact import ArtifactStored, DatasetsPacked, DatasetsRefused
from shared.contracts.job import Event, PackedDataset
from shared.problems import Rejected

JOB = UUID(int=1)
AT = datetime(2026, 11, 22, tzinfo=UTC)


def an_artifact(sha256: str = "a" * 64, *, job_id: UUID = JOB) -> ArtifactStored:
    return ArtifactStored(
        job_id=job_id,
        attempt_id=None,
        bucket="outputs",
        object_key="job/model.safetensors",
        name="model.safetensors",
        size_bytes=1,
        sha256=sha256,
        content_type="application/octet-stream",
        stored_at=AT,
    )


def artifact_after(*events: Event) -> artifact.ArtifactState:
    state = artifact.INITIAL
    for event in events:
        state = artifact.evolve(state, event)
    return state


PACKED = DatasetsPacked(
    job_id=JOB,
    datasets=[PackedDataset(dataset_id="pictures", sha256="b" * 64, size_bytes=1, file_count=1)],
    packed_at=AT,
)
REFUSED = DatasetsRefused(job_id=JOB, dataset_id="pictures", message="gone", advice="look", refused_at=AT)


def test_a_new_key_is_recorded() -> None:
    assert artifact.decide(artifact_after(), an_artifact()) == [an_artifact()]


def test_the_same_content_again_records_nothing() -> None:
    assert artifact.decide(artifact_after(an_artifact()), an_artifact()) == []


def test_other_content_is_the_next_version() -> None:
    other = an_artifact("c" * 64)
    assert artifact.decide(artifact_after(an_artifact()), other) == [other]
    assert artifact_after(an_artifact(), other).version == 2
    assert artifact_after(an_artifact(), other).current == other


def test_going_back_to_an_older_content_is_a_version_too() -> None:
    history = artifact_after(an_artifact(), an_artifact("c" * 64))
    assert artifact.decide(history, an_artifact()) == [an_artifact()]


def test_a_key_of_another_job_is_refused() -> None:
    with pytest.raises(Rejected) as refusal:
        artifact.decide(artifact_after(an_artifact()), an_artifact(job_id=UUID(int=2)))
    assert refusal.value.code == "invalid_object_key"


def test_the_same_key_has_the_same_stream_in_every_process() -> None:
    assert artifact_stream("outputs", "a/b") == "artifact-14885136-5673-511a-bea3-642e42cf5a36"
    assert artifact_stream("outputs", "a/b") != artifact_stream("outputs", "a/c")


@pytest.mark.parametrize("first", [PACKED, REFUSED])
@pytest.mark.parametrize("second", [PACKED, REFUSED])
def test_the_first_packing_result_is_the_only_one(first: dataset.PackResult, second: dataset.PackResult) -> None:
    state = dataset.evolve(dataset.INITIAL, first)
    assert dataset.decide(dataset.INITIAL, first) == [first]
    assert dataset.decide(state, second) == []
    assert dataset.evolve(state, second).result == first
