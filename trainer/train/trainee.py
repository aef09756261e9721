# pyright: basic
"""Everything that changes while training, in one place: one update, and saving and restoring all of it."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shared.contracts.training.loop import CommonSpec
from trainer.failures import AttemptFailed
from trainer.train.average import Average
from trainer.train.checkpoint import (
    CheckpointFolder,
    CheckpointWriter,
    draws,
    random_states,
    restore_draws,
    restore_random_states,
)
from trainer.train.memory import MemoryLadder
from trainer.train.optim import build_optimizer, clip_gradients, learning_rate_at, set_learning_rate
from trainer.train.precision import Precision
from trainer.train.task import Naming, Task, TrainedPart

MAX_BAD_LOSSES_IN_A_ROW = 10
_EMA_FILE_NAME = "ema.safetensors"


@dataclass(frozen=True)
class Update:
    """What one optimizer step reports. `loss` is None when it was not a finite number and the update was skipped."""

    step: int
    epoch: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    step_s: float
    suspects: tuple[str, ...] = ()
    """The samples whose loss was not a finite number."""


class Trainee:
    """The trained part, its optimizer, its average, the order of data and every source of chance."""

    def __init__(
        self, part: TrainedPart, task: Task, spec: CommonSpec, precision: Precision, noise: torch.Generator,
        total_steps: int,
    ) -> None:  # fmt: skip
        self.part, self.task, self.spec, self.precision = part, task, spec, precision
        self.total_steps = total_steps
        self.noise = noise
        self._optimizer = build_optimizer(part.parameters, spec)
        self._scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
        self.average = Average(part.tensors(), spec.ema_decay, spec.ema_warmup_steps) if spec.use_ema else None
        self._ladder = MemoryLadder(task, part.model, spec, precision.device)
        self.step = 0
        self.last_loss: float | None = None
        self._bad_losses = 0
        self._suspects: tuple[str, ...] = ()
        self._before = self._moment()

    def update(self) -> Update:
        """One optimizer step over `gradient_accumulation_steps` batches.

        Raises AttemptFailed(nan_loss) after ten losses in a row that are not finite, and whatever a device raises when
        its memory is full: then `adapt` has to be called before the next update.
        """
        started = time.monotonic()
        self._before = self._moment()
        rate = learning_rate_at(self.step, self.total_steps, self.spec)
        set_learning_rate(self._optimizer, rate)
        if not self.part.model.training:  # to set the mode takes a walk over all modules
            self.part.model.train()
        epoch = self.task.epoch
        loss = self._accumulate()
        grad_norm = self._apply_gradients() if loss is not None else None
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._count_bad_losses(loss)
        if self.average is not None and self.step % self.spec.ema_update_interval == 0:
            self.average.update(self.part.tensors(), self.step)
        suspects = self._suspects if loss is None else ()
        return Update(self.step, epoch, loss, rate, grad_norm, time.monotonic() - started, suspects)

    def adapt(self) -> str:
        """After an update ran out of memory: go back to its beginning and make the next try smaller; says how.

        Raises AttemptFailed(out_of_memory) when nothing is left to make smaller.
        """
        self._optimizer.zero_grad(set_to_none=True)
        position, states = self._before
        self.task.go_to(position)
        restore_draws(states, self.noise)
        return self._ladder.climb(self.step + 1)

    def save(self, writer: CheckpointWriter, write_part: Callable[..., Any]) -> CheckpointFolder:
        """Write all state into the writer's folder and commit it."""
        write_part(writer.scratch, self.part.tensors(), self.step)
        if self.average is not None:
            save_file(self.average.tensors, writer.scratch / _EMA_FILE_NAME)
        optimizer = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        torch.save(optimizer, writer.scratch / "optimizer.pt")
        torch.save(random_states(self.noise), writer.scratch / "rng.pt")
        writer.write_json(
            "state.json",
            {
                "step": self.step, "position": self.task.position(), "accumulation_position": 0,
                "last_loss": self.last_loss, "bad_losses": self._bad_losses, "identity": self._identity(),
                "memory": self._ladder.state(),
            },
        )  # fmt: skip
        return writer.commit()

    def restore(self, folder: CheckpointFolder) -> None:
        """Go on from a checkpoint. Raises AttemptFailed(bad_config) when it belongs to another training."""
        state = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
        different = sorted(key for key, value in self._identity().items() if state["identity"].get(key) != value)
        if different:
            message = f"checkpoint-{folder.step} was made with another {', '.join(different)}"
            raise AttemptFailed("bad_config", message, "Start without resuming, or restore the old settings.")
        self.part.load(self.part.read(folder.path))
        if self.average is not None:
            self.average.tensors = load_file(folder.path / _EMA_FILE_NAME)
        stored = torch.load(folder.path / "optimizer.pt", weights_only=True, map_location="cpu")
        self._optimizer.load_state_dict(stored["optimizer"])
        self._scaler.load_state_dict(stored["scaler"])
        self.task.go_to(state["position"])
        self._ladder.restore(state["memory"])
        self.step, self.last_loss, self._bad_losses = state["step"], state["last_loss"], state["bad_losses"]
        restore_random_states(torch.load(folder.path / "rng.pt", weights_only=True), self.noise)

    def _identity(self) -> dict[str, Any]:
        return {**self.part.identity, **self.task.identity}

    def _moment(self) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """Where data and chance stand now."""
        return self.task.position(), draws(self.noise)

    def _accumulate(self) -> float | None:
        """Add the gradients of all micro-batches; returns the update's loss, which a GPU is waited for once.

        None when it is not a finite number; `_suspects` then names the samples.
        """
        parts: list[torch.Tensor] = []
        for loss in self.task.losses(self.spec.gradient_accumulation_steps, self.noise):
            self._scaler.scale(loss).backward()
            parts.append(loss.detach())
        total = float(torch.stack(parts).sum())
        if math.isfinite(total):
            return total
        bad = [number for number, part in enumerate(parts) if not math.isfinite(part)]
        if isinstance(self.task, Naming):
            self._suspects = tuple(dict.fromkeys(name for number in bad for name in self.task.samples_of(number)))
        return None

    def _apply_gradients(self) -> float:
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self.part.parameters, self.spec)
        if math.isfinite(norm):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        return norm

    def _count_bad_losses(self, loss: float | None) -> None:
        if loss is not None:
            self.last_loss, self._bad_losses = loss, 0
            return
        self._bad_losses += 1
        if self._bad_losses >= MAX_BAD_LOSSES_IN_A_ROW:
            samples = f"; the last came from {', '.join(self._suspects)}" if self._suspects else ""
            message = f"the loss was not a finite number {self._bad_losses} times in a row (step {self.step}){samples}"
            raise AttemptFailed("nan_loss", message, "Lower learning_rate, or check these samples for damage.")
