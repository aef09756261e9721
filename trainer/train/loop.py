"""The training loop, readable in one screen: step, report, save, look."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.control import Control
from trainer.report.events import Reporter
from trainer.train.memory import memory_numbers, out_of_memory_failure
from trainer.train.trainee import Trainee, Update

_log = logging.getLogger("trainer.train")
_COUNTS = {"samples", "tokens"}


@dataclass(frozen=True)
class Hooks:
    """What the loop calls besides updating: both run between steps and leave every source of chance untouched."""

    save: Callable[[], None]
    validate: Callable[[], None]


def train(trainee: Trainee, hooks: Hooks, reporter: Reporter, control: Control) -> None:
    """Run to `trainee.total_steps`. A stop or a time limit saves first, then raises AttemptFailed(preempted)."""
    spec, saved_at = trainee.spec, trainee.step
    while trainee.step < trainee.total_steps:
        control.raise_if_superseded()
        if (ending := control.ending(f"at step {trainee.step}")) is not None:
            if ending.saves and trainee.step > saved_at:
                hooks.save()
            raise ending.failure
        try:
            update = trainee.update()
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            raise out_of_memory_failure(error, spec, trainee.task) from error
        last = trainee.step == trainee.total_steps
        _report(update, trainee, reporter, last=last)
        if last or trainee.step % spec.checkpoint_step_interval == 0 or control.checkpoint_is_due():
            hooks.save()
            saved_at = trainee.step
            reporter.carried_out(control.checkpoint_saved())
        if last or trainee.step % spec.validation_step_interval == 0 or control.sample_now.is_set():
            hooks.validate()
            reporter.carried_out(control.carried_out("sample_now"))


def _report(update: Update, trainee: Trainee, reporter: Reporter, *, last: bool) -> None:
    reporter.step = update.step
    if update.loss is None:
        reporter.warning("loss_not_finite", f"the loss of step {update.step} is not finite; the update was skipped")
    every_tenth_part = max(1, trainee.total_steps // 10)
    if update.step % every_tenth_part == 0 or last:
        _log.info("step %d/%d, loss %s", update.step, trainee.total_steps, update.loss)
    if not (last or update.step % trainee.spec.webhook_reporting_interval == 0):
        return
    reporter.metrics(
        step=update.step,
        total_steps=trainee.total_steps,
        epoch=update.epoch,
        loss=update.loss,
        lr=update.learning_rate,
        grad_norm=update.grad_norm,
        step_s=round(update.step_s, 4),
        eta_s=round(update.step_s * (trainee.total_steps - update.step), 1),
        **_figures(trainee, update.step_s),
        **memory_numbers(trainee.precision.device),
    )


def _figures(trainee: Trainee, step_s: float) -> dict[str, float]:
    """What the task measured: counts of samples and tokens as speeds, everything else as it is."""
    figures = dict(trainee.task.figures())
    speeds = {f"{name}_per_s": round(figures.pop(name) / step_s, 2) for name in _COUNTS & figures.keys() if step_s}
    return {**figures, **speeds}
