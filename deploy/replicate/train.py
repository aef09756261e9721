# pyright: basic
"""The `train` entry of the Cog container (cog.yaml): inputs with Cog's types, handed to the trainer's own entry."""

import os
import sys
from pathlib import Path as LocalPath

from cog import Input, Path, Secret  # pyright: ignore[reportMissingImports] -- lives in the container

sys.path.insert(0, str(LocalPath(__file__).resolve().parents[2]))

from trainer.entry import cog_train


def train(  # noqa: PLR0913, PLR0917 -- Cog makes the form of a model from this list
    config: str = Input(description="The training config as JSON: SimpleTuner keys, with or without --", default=""),
    dataloader: str = Input(description="The dataloader as JSON, an object or a list", default=""),
    dataset: Path | None = Input(description="Pictures with captions, as zip or tar", default=None),  # noqa: B008 -- Cog reads it
    dataset_url: str = Input(description="Instead of dataset: where to fetch it", default=""),
    job_id: str = Input(description="The job's name; a repeat under the same name goes on", default=""),
    max_run_s: int = Input(description="Save, deliver and stop after so many seconds; 0 means no limit", default=0),
    run_spec: str = Input(description="A run of a Tunewright control plane, as JSON, instead of all above", default=""),
    token: Secret | None = Input(description="The token of that run", default=None),  # noqa: B008 -- as above
    label: str = Input(description="What the control plane knows that run by in your list of trainings", default=""),
) -> Path:
    """A tar with the LoRA, its manifest, the samples and the log."""
    given = {
        "config": config,
        "dataloader": dataloader,
        "dataset_url": dataset_url,
        "job_id": job_id,
        "max_run_s": max_run_s,
        "run_spec": run_spec,
        "token": token.get_secret_value() if token else "",
        "label": label,
    }
    return Path(cog_train.train(given, LocalPath(dataset) if dataset else None, os.environ))
