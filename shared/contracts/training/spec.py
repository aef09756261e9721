"""One submitted config with its data, checked whole: what the gateway asks at submit and the trainer again at start."""

from typing import Any

import msgspec

from shared.contracts.training.datasets import DatasetSpec, check_dataloader
from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion
from shared.contracts.training.diffusion_keys import ALIASES
from shared.contracts.training.problems import ConfigRejected, FieldProblem
from shared.contracts.training.values import bare_key, coerced

TrainingSpec = DiffusionSpec
"""Every kind of training this build knows, normalised; its type says which session runs it."""


class CheckedTraining(msgspec.Struct, frozen=True, kw_only=True):
    """A config that can be trained, and the datasets it is trained on."""

    spec: TrainingSpec
    datasets: list[DatasetSpec]


def check_training(config: dict[str, Any], dataloader: list[dict[str, Any]]) -> CheckedTraining:
    """Check a config and its dataloader list. Raises ConfigRejected with every problem of both."""
    problems: list[FieldProblem] = []
    spec: TrainingSpec | None = None
    datasets: list[DatasetSpec] = []
    try:
        spec = check_diffusion(config)
    except ConfigRejected as rejected:
        problems.extend(rejected.problems)
    try:
        datasets = check_dataloader(dataloader)
    except ConfigRejected as rejected:
        problems.extend(rejected.problems)
    if spec is None or problems:
        raise ConfigRejected(problems)
    return CheckedTraining(spec=spec, datasets=datasets)


def planned_steps(config: dict[str, Any]) -> int | None:
    """The number of updates a submitted config asks for, in any spelling; None when it counts epochs."""
    for key, value in config.items():
        name = bare_key(key)
        if ALIASES.get(name, name) == "max_train_steps":
            steps = coerced(value)
            return steps if isinstance(steps, int) and steps > 0 else None
    return None
