"""The training loop, readable in one screen: step, report, save, look."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.control import Control
from trainer.report.events import Reporter
from trainer.train.memory import is_out_of_memory, memory_numbers
from trainer.train.task import Evaluation
from trainer.train.trainee import Trainee, Update

_log = logging.getLogger("trainer.train")
_COUNTS = {"samples", "tokens"}


@dataclass(frozen=True)
class Hooks:
    """What the loop calls besides updating: all run between steps and leave every source of chance untouched."""

    save: Callable[[], None]
    validate: Callable[[], None]
    evaluation: Evaluation | None = None


def train(trainee: Trainee, hooks: Hooks, reporter: Reporter, control: Control) -> None:
    """Run to `trainee.total_steps`. A stop or a time limit saves first, then raises AttemptFailed(preempted)."""
    spec, saved_at = trainee.spec, trainee.step
    while trainee.step < trainee.total_steps:
        control.raise_if_superseded()
        if (ending := control.ending(f"at step {trainee.step}")) is not None:
            if ending.saves and trainee.step > saved_at:
                hooks.save()
            raise ending.failure
        epoch = trainee.task.epoch
        try:
            update = trainee.update()
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reporter.warning("adapted", trainee.adapt())
            continue
        now = Moment(trainee.step, epoch, trainee.task.epoch, last=trainee.step == trainee.total_steps)
        due = hooks.evaluation is not None and now.is_due(hooks.evaluation.every_steps, hooks.evaluation.every_epochs)
        eval_loss = hooks.evaluation.measure() if hooks.evaluation is not None and due else None
        _report(update, trainee, reporter, last=now.last, eval_loss=eval_loss)
        if now.is_due(spec.checkpoint_step_interval, spec.checkpoint_epoch_interval) or control.checkpoint_is_due():
            hooks.save()
            saved_at = trainee.step
            reporter.carried_out(control.checkpoint_saved())
        if now.is_due(spec.validation_step_interval, spec.validation_epoch_interval) or control.sample_now.is_set():
            hooks.validate()
            reporter.carried_out(control.carried_out("sample_now"))


@dataclass(frozen=True)
class Moment:
    """Where training stands after an update: epochs are counted from 0, before and after it."""

    step: int
    epoch_before: int
    epoch: int
    last: bool

    def is_due(self, every_steps: int | None, every_epochs: int | None) -> bool:
        """Whether something that comes every so many steps or epochs, and at the end, comes now."""
        by_step = every_steps is not None and self.step % every_steps == 0
        by_epoch = every_epochs is not None and self.epoch // every_epochs > self.epoch_before // every_epochs
        return self.last or by_step or by_epoch


def _report(update: Update, trainee: Trainee, reporter: Reporter, *, last: bool, eval_loss: float | None) -> None:
    reporter.step = update.step
    if update.loss is None:
        samples = f" for {', '.join(update.suspects)}" if update.suspects else ""
        sentence = f"the loss of step {update.step} is not finite{samples}; the update was skipped"
        reporter.warning("loss_not_finite", sentence)
    every_tenth_part = max(1, trainee.total_steps // 10)
    if update.step % every_tenth_part == 0 or last:
        _log.info("step %d/%d, loss %s", update.step, trainee.total_steps, update.loss)
    if not (last or eval_loss is not None or update.step % trainee.spec.webhook_reporting_interval == 0):
        return
    reporter.metrics(
        step=update.step,
        total_steps=trainee.total_steps,
        epoch=update.epoch,
        loss=update.loss,
        **({"eval_loss": eval_loss} if eval_loss is not None else {}),
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
