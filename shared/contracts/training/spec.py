"""One submitted config with its data, checked whole: what the gateway asks at submit and the trainer again at start."""

from typing import Any

import msgspec

from shared.contracts.training.datasets import DatasetSpec, check_dataloader
from shared.contracts.training.diffusion import DiffusionSpec, check_diffusion, inherited_settings
from shared.contracts.training.diffusion_keys import ALIASES
from shared.contracts.training.llm import LlmSpec, check_llm, is_llm_config, planned_llm_steps
from shared.contracts.training.problems import ConfigRejected, FieldProblem, problem
from shared.contracts.training.text_datasets import TextDatasetSpec, check_text_data
from shared.contracts.training.values import bare_key, coerced

TrainingSpec = DiffusionSpec | LlmSpec
"""Every kind of training this build knows, normalised; its type says which session runs it."""


class CheckedTraining(msgspec.Struct, frozen=True, kw_only=True):
    """A config that can be trained, and the datasets it is trained on."""

    spec: TrainingSpec
    datasets: list[DatasetSpec] = []
    text_datasets: list[TextDatasetSpec] = []

    @property
    def sources(self) -> list[DatasetSpec | TextDatasetSpec]:
        """Every dataset, whatever it holds."""
        return [*self.datasets, *self.text_datasets]


def check_training(config: dict[str, Any], dataloader: list[dict[str, Any]]) -> CheckedTraining:
    """Check a config and its dataloader list. Raises ConfigRejected with every problem of both."""
    if is_llm_config(config):
        return _checked_llm(config, dataloader)
    problems: list[FieldProblem] = []
    spec: DiffusionSpec | None = None
    datasets: list[DatasetSpec] = []
    try:
        spec = check_diffusion(config)
    except ConfigRejected as rejected:
        problems.extend(rejected.problems)
    try:
        datasets = check_dataloader(dataloader, inherited_settings(spec) if spec is not None else None)
    except ConfigRejected as rejected:
        problems.extend(rejected.problems)
    if spec is not None:
        problems.extend(_schedule_problems(spec, datasets))
    if spec is None or problems:
        raise ConfigRejected(problems)
    return CheckedTraining(spec=spec, datasets=datasets)


def _schedule_problems(spec: DiffusionSpec, datasets: list[DatasetSpec]) -> list[FieldProblem]:
    """An epoch has no fixed length when datasets come and go by steps."""
    by_step = [each.id for each in datasets if each.start_step > 1 or each.end_step is not None]
    if not by_step or spec.max_train_steps:
        return []
    message = f"the length of an epoch changes with start_step and end_step of {', '.join(by_step)}"
    return [problem("num_train_epochs", "conflict", message, "Set max_train_steps, and num_train_epochs to 0.")]


def _checked_llm(config: dict[str, Any], dataloader: list[dict[str, Any]]) -> CheckedTraining:
    problems: list[FieldProblem] = []
    spec: LlmSpec | None = None
    try:
        spec = check_llm(config)
    except ConfigRejected as rejected:
        problems.extend(rejected.problems)
    data_problems: list[FieldProblem] = []
    data = check_text_data(config, dataloader, data_problems)
    problems.extend(data_problems)
    if spec is None or problems:
        raise ConfigRejected(problems)
    if data.eval_split is not None and not spec.eval_split:
        spec = msgspec.structs.replace(spec, eval_split=data.eval_split)
    return CheckedTraining(spec=spec, text_datasets=data.datasets)


def planned_steps(config: dict[str, Any]) -> int | None:
    """The number of updates a submitted config asks for, in any spelling; None when it counts epochs."""
    if is_llm_config(config):
        return planned_llm_steps(config)
    for key, value in config.items():
        name = bare_key(key)
        if ALIASES.get(name, name) == "max_train_steps":
            steps = coerced(value)
            return steps if isinstance(steps, int) and steps > 0 else None
    return None
