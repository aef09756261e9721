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

from shared.contracts.training_keys import TrainingSpec
from trainer.data.discover import Picture
from trainer.data.prepare import CachedTensors
from trainer.data.sampler import Sampler, SamplerState
from trainer.failures import AttemptFailed
from trainer.families.protocol import BaseModel, Family
from trainer.train.checkpoint import CheckpointFolder, CheckpointWriter, random_states, restore_random_states
from trainer.train.lora import LORA_FILE_NAME, Adapter, Average, to_device
from trainer.train.objective import Batch, training_loss
from trainer.train.optim import build_optimizer, clip_gradients, learning_rate_at, set_learning_rate

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


class Trainee:
    """The adapter, its optimizer, its average, the order of data and every source of chance."""

    def __init__(
        self, family: Family, base: BaseModel, spec: TrainingSpec, pictures: list[Picture], sampler: Sampler,
        cached: CachedTensors, total_steps: int, identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self.family, self.base, self.spec = family, base, spec
        self._pictures, self.sampler, self._cached = pictures, sampler, cached
        self.total_steps = total_steps
        self._identity = identity
        denoiser = family.load_denoiser(base)
        # Seeded here and not earlier: what was loaded or cached before must not change the adapter's first values.
        torch.manual_seed(spec.seed)
        self.noise = torch.Generator().manual_seed(spec.seed)
        self.adapter = Adapter(family, denoiser, spec)
        if spec.gradient_checkpointing:
            family.gradient_checkpointing(denoiser)
        self._optimizer = build_optimizer(self.adapter.parameters, spec)
        self._scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
        self.average = Average(self.adapter.tensors(), spec.ema_decay) if spec.use_ema else None
        self.step = 0
        self.last_loss: float | None = None
        self._bad_losses = 0

    @property
    def denoiser(self) -> Any:
        """The network with the adapter in it."""
        return self.adapter.denoiser

    def update(self) -> Update:
        """One optimizer step over `gradient_accumulation_steps` batches.

        Raises AttemptFailed(nan_loss) after ten losses in a row that are not finite.
        """
        started = time.monotonic()
        rate = learning_rate_at(self.step, self.total_steps, self.spec)
        set_learning_rate(self._optimizer, rate)
        self.denoiser.train()
        epoch = self.sampler.state.epoch
        loss = sum(self._accumulate() for _ in range(self.spec.gradient_accumulation_steps))
        grad_norm = self._apply_gradients() if math.isfinite(loss) else None
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        finite = loss if math.isfinite(loss) else None
        self._count_bad_losses(finite)
        if self.average is not None and self.step % self.spec.ema_update_interval == 0:
            self.average.update(self.adapter.tensors(), self.step)
        return Update(self.step, epoch, finite, rate, grad_norm, time.monotonic() - started)

    def save(self, writer: CheckpointWriter, write_adapter: Callable[..., Any]) -> CheckpointFolder:
        """Write all state into the writer's folder and commit it."""
        write_adapter(writer.scratch, self.adapter.tensors(), self.step)
        if self.average is not None:
            save_file(self.average.tensors, writer.scratch / _EMA_FILE_NAME)
        optimizer = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        torch.save(optimizer, writer.scratch / "optimizer.pt")
        torch.save(random_states(self.noise), writer.scratch / "rng.pt")
        state = self.sampler.state
        writer.write_json(
            "state.json",
            {
                "step": self.step, "epoch": state.epoch, "position": state.position, "accumulation_position": 0,
                "last_loss": self.last_loss, "bad_losses": self._bad_losses, "identity": self._identity,
            },
        )  # fmt: skip
        return writer.commit()

    def restore(self, folder: CheckpointFolder) -> None:
        """Go on from a checkpoint. Raises AttemptFailed(bad_config) when it belongs to another training."""
        state = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
        different = sorted(key for key, value in self._identity.items() if state["identity"].get(key) != value)
        if different:
            message = f"checkpoint-{folder.step} was made with another {', '.join(different)}"
            raise AttemptFailed("bad_config", message, "Start without resuming, or restore the old settings.")
        self.adapter.load(Adapter.read(folder.path / LORA_FILE_NAME))
        if self.average is not None:
            self.average.tensors = load_file(folder.path / _EMA_FILE_NAME)
        stored = torch.load(folder.path / "optimizer.pt", weights_only=True, map_location="cpu")
        self._optimizer.load_state_dict(stored["optimizer"])
        self._scaler.load_state_dict(stored["scaler"])
        self.sampler.restore(SamplerState(epoch=state["epoch"], position=state["position"]))
        self.step, self.last_loss, self._bad_losses = state["step"], state["last_loss"], state["bad_losses"]
        restore_random_states(torch.load(folder.path / "rng.pt", weights_only=True), self.noise)

    def _accumulate(self) -> float:
        """Add one batch's gradient; returns its share of the loss."""
        latents, conditioning = self._cached.of_visits(self._pictures, self.sampler.next_batch())
        batch = Batch(
            latents.to(self.base.device, self.base.dtype),
            to_device(conditioning, self.base.device, self.base.dtype),
        )
        mixed = self.base.dtype != torch.float32
        with torch.autocast(self.base.device.type, self.base.dtype, enabled=mixed):
            loss = training_loss(self.family, self.denoiser, batch, self.noise, self.spec)
        share = loss / self.spec.gradient_accumulation_steps
        self._scaler.scale(share).backward()
        return share.item()

    def _apply_gradients(self) -> float:
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self.adapter.parameters, self.spec)
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
            message = f"the loss was not a finite number {self._bad_losses} times in a row (step {self.step})"
            raise AttemptFailed("nan_loss", message, "Lower learning_rate, or check the dataset for damaged pictures.")
