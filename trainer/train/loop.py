"""The training loop, readable in one screen: step, report, save, look."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.control import Control
from trainer.failures import AttemptFailed
from trainer.report.events import Reporter
from trainer.train.memory import memory_bytes, out_of_memory_failure
from trainer.train.trainee import Trainee, Update

_log = logging.getLogger("trainer.train")


@dataclass(frozen=True)
class Hooks:
    """What the loop calls besides updating: both run between steps and leave every source of chance untouched."""

    save: Callable[[], None]
    validate: Callable[[], None]


def train(trainee: Trainee, hooks: Hooks, reporter: Reporter, control: Control) -> None:
    """Run to `trainee.total_steps`. A stop saves first, then raises AttemptFailed(preempted)."""
    spec, saved_at = trainee.spec, trainee.step
    while trainee.step < trainee.total_steps:
        control.raise_if_superseded()
        if control.stop.is_set():
            if trainee.step > saved_at:
                hooks.save()
            raise AttemptFailed("preempted", f"stopped at step {trainee.step}", "The job goes on from its checkpoint.")
        try:
            update = trainee.update()
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            raise out_of_memory_failure(error, spec, trainee.task) from error
        last = trainee.step == trainee.total_steps
        _report(update, trainee, reporter, last=last)
        if last or trainee.step % spec.checkpoint_step_interval == 0 or control.checkpoint_now.is_set():
            control.checkpoint_now.clear()
            hooks.save()
            saved_at = trainee.step
        if last or trainee.step % spec.validation_step_interval == 0 or control.sample_now.is_set():
            control.sample_now.clear()
            hooks.validate()


def _report(update: Update, trainee: Trainee, reporter: Reporter, *, last: bool) -> None:
    reporter.step = update.step
    if update.loss is None:
        reporter.warning("loss_not_finite", f"the loss of step {update.step} is not finite; the update was skipped")
    every_tenth_part = max(1, trainee.total_steps // 10)
    if update.step % every_tenth_part == 0 or last:
        _log.info("step %d/%d, loss %s", update.step, trainee.total_steps, update.loss)
    if not (last or update.step % trainee.spec.webhook_reporting_interval == 0):
        return
    reporter.emit(
        "metrics",
        step=update.step,
        total_steps=trainee.total_steps,
        epoch=update.epoch,
        loss=update.loss,
        lr=update.learning_rate,
        grad_norm=update.grad_norm,
        step_s=round(update.step_s, 4),
        eta_s=round(update.step_s * (trainee.total_steps - update.step), 1),
        memory_bytes=memory_bytes(trainee.precision.device),
    )
