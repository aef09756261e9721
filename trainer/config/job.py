"""One attempt's checked input: the wire `RunSpec` together with the typed config and datasets made from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared.contracts.run import RunSpec
from shared.contracts.training.datasets import DatasetSpec
from shared.contracts.training.problems import ConfigRejected
from shared.contracts.training.spec import TrainingSpec, check_training
from shared.contracts.training.text_datasets import TextDatasetSpec
from trainer.failures import AttemptFailed


@dataclass(frozen=True)
class Job:
    """Everything the attempt needs, already checked."""

    run: RunSpec
    training: TrainingSpec
    datasets: list[DatasetSpec]
    text_datasets: list[TextDatasetSpec]
    config_hash: str
    """The hex sha256 of the submitted config in canonical JSON; written into every output."""


def read_run_spec(path: Path) -> RunSpec:
    """Read the spec file. Raises AttemptFailed(bad_config) when it is missing or does not fit the contract."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunSpec)
    except (OSError, msgspec.DecodeError) as error:
        advice = "The spec file is written by the control plane; start the attempt again."
        raise AttemptFailed("bad_config", f"the run spec cannot be read: {error}", advice) from error


def checked_job(run: RunSpec) -> Job:
    """Check config and dataloader together. Raises AttemptFailed(bad_config) naming every problem."""
    try:
        checked = check_training(run.config, run.dataloader)
    except ConfigRejected as rejected:
        message = "; ".join(f"{each.field}: {each.message}" for each in rejected.problems)
        advice = " ".join(dict.fromkeys(each.advice for each in rejected.problems))
        raise AttemptFailed("bad_config", message, advice) from rejected
    return Job(
        run=run,
        training=checked.spec,
        datasets=checked.datasets,
        text_datasets=checked.text_datasets,
        config_hash=config_hash(run),
    )


def config_hash(run: RunSpec) -> str:
    """The hex sha256 of the config as submitted, independent of key order."""
    return hashlib.sha256(msgspec.json.encode(run.config, order="deterministic")).hexdigest()
