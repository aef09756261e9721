"""Replicate: `train()` of a Cog container. The signature with Cog's types is in `deploy/replicate/train.py`.

A cancellation arrives as an exception in the middle of `follow`; the trainer is then stopped in good order on the way
out, and the exception goes on to Cog.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.contracts.run import ExitCode
from trainer.control import Control
from trainer.entry.child import TrainerChild, describe_exit
from trainer.entry.intake import take_in
from trainer.entry.results import Outputs, Story, collect, pack, say, write_log
from trainer.entry.settings import EntrySettings
from trainer.failures import AttemptFailed

_INPUTS = frozenset({"run_spec", "config", "dataloader"})
"""Members that are objects; Cog has no such type, so they come as JSON text."""


class TrainingFailed(Exception):  # noqa: N818 -- an answer, not a fault
    """The run did not end with a model; Cog shows the text as the training's `error`."""


def train(given: Mapping[str, Any], dataset: Path | None, environ: Mapping[str, str]) -> Path:
    """Train to the end; a tar of the results. `given` holds the inputs as Cog passes them, `dataset` a local file.

    Raises TrainingFailed, with what to do, when there is no result.
    """
    settings = EntrySettings.from_environ(environ)
    job_id = f"cog-{uuid.uuid4().hex[:12]}"
    try:
        taken = take_in(_members(given), job_id, settings.intake, Control(), dataset)
    except AttemptFailed as failure:
        raise TrainingFailed(f"{failure.kind}: {failure.message}. {failure.advice}") from failure
    story = Story()
    with TrainerChild(taken.order, settings.child) as child:

        def take(line: Any) -> None:
            story.take(line)
            say(line)

        code = child.follow(take)
        last_words = child.last_words()
    if code != ExitCode.DONE:
        raise TrainingFailed(describe_exit(code, story.failed, last_words))
    work_dir = taken.order.work_dir
    target = settings.work_dir / f"{taken.order.spec.job_id}.tar"
    if taken.order.spec.gateway_url is not None:
        # The results are with the gateway; Replicate gets the log, and no second copy.
        pack(Outputs(work_dir, [], write_log(story, work_dir)), work_dir, target)
    else:
        pack(collect(story, work_dir), work_dir, target)
    shutil.rmtree(work_dir, ignore_errors=True)
    return target


def _members(given: Mapping[str, Any]) -> dict[str, Any]:
    """The intake's members from Cog's inputs: what was left empty is not there."""
    members: dict[str, Any] = {}
    for name, value in given.items():
        if value in (None, "", 0):
            continue
        if name in _INPUTS and isinstance(value, str):
            try:
                members[name] = json.loads(value)
            except json.JSONDecodeError as error:
                advice = "Send the object as JSON text."
                raise AttemptFailed("bad_config", f"input.{name}: this is not JSON: {error}", advice) from error
        else:
            members[name] = value
    return members
