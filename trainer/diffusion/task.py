# pyright: basic
"""Teaching a denoiser: pictures in the sampler's order, their cached latents and texts, one loss per batch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.ahead import Ahead
from trainer.data.discover import Picture
from trainer.data.prepare import CachedTensors
from trainer.data.sampler import Sampler, SamplerState, Visit
from trainer.families.protocol import BaseModel, Conditioning, Family, collated, placed
from trainer.train.noising import noising_for
from trainer.train.objective import Batch, training_loss


class DiffusionTask:
    """`trainer.train.task.Task` for a family's denoiser; `model` is the network with the trained part in it."""

    def __init__(
        self, family: Family, base: BaseModel, model: Any, spec: DiffusionSpec, pictures: list[Picture],
        sampler: Sampler, cached: CachedTensors, identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self._family, self._base, self._model, self._spec = family, base, model, spec
        self._noising = noising_for(family, base, spec)
        self._pictures, self._sampler, self._cached = pictures, sampler, cached
        self._ahead = Ahead(self._made, _depth(spec, base.device))
        self.identity = identity

    @property
    def epoch(self) -> int:
        """The pass over the pictures, counted from 0."""
        return self._sampler.state.epoch

    def losses(self, micro_batches: int, noise: Generator) -> Iterator[Tensor]:
        """The mean over all batches of the update, a share each."""
        self._sampler.begin_update()
        for _ in range(micro_batches):
            yield self._loss(noise) / micro_batches

    def figures(self) -> dict[str, float]:
        """The pictures of all batches of the update."""
        return {"samples": self._spec.train_batch_size * self._spec.gradient_accumulation_steps}

    def position(self) -> dict[str, Any]:
        """The sampler's epoch, position and number of updates."""
        state = self._sampler.state
        return {"epoch": state.epoch, "batch": state.position, "update": state.update}

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on from a stored position."""
        self._sampler.restore(SamplerState(position["epoch"], position["batch"], position["update"]))

    def load_of_one_batch(self) -> str:
        """Batch size and resolution."""
        return f"batch {self._spec.train_batch_size} at resolution {self._spec.resolution:g}"

    def advice_for_less_memory(self) -> str:
        """Smaller pictures."""
        return f"Set resolution to {self._spec.resolution * 0.75:g} or lower, or use a machine with more memory."

    def _loss(self, noise: Generator) -> Tensor:
        visits = self._sampler.next_batch()
        latents, conditioning = self._ahead.take(tuple(visits), map(tuple, self._sampler.upcoming()))
        device, dtype = self._base.device, self._base.dtype
        batch = Batch(latents.to(device, dtype, non_blocking=True), placed(conditioning, device, dtype))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return training_loss(self._family, self._model, batch, self._noising, noise, self._spec)

    def _made(self, visits: tuple[Visit, ...]) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of a batch on the CPU, from where a GPU can fetch them while it computes."""
        latents, conditioning = self._cached.of_visits(self._pictures, list(visits))
        placements = (self._pictures[visit.picture].placement for visit in visits)
        conditioning.update(collated([self._family.conditioning_of(placement) for placement in placements]))
        if self._base.device.type != "cuda":
            return latents, conditioning
        return latents.pin_memory(), {name: tensor.pin_memory() for name, tensor in conditioning.items()}


def _depth(spec: DiffusionSpec, device: torch.device) -> int:
    """How many batches are made ahead: where a device would wait for them, unless the config says otherwise."""
    wanted = device.type == "cuda" if spec.dataloader_prefetch is None else spec.dataloader_prefetch
    return spec.dataloader_prefetch_qlen if wanted else 0
