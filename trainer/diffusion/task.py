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
from trainer.train.objective import Batch, training_loss, training_losses


class DiffusionTask:
    """`trainer.train.task.Task` for a family's denoiser; `model` is the network with the trained part in it.

    Its batches can be taken in parts (`Divisible`), and it knows its samples by name (`Naming`).
    """

    def __init__(
        self, family: Family, base: BaseModel, model: Any, spec: DiffusionSpec, sampler: Sampler, cached: CachedTensors,
        identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self._family, self._base, self._model, self._spec = family, base, model, spec
        self._noising = noising_for(family, base, spec)
        self._sampler, self._cached = sampler, cached
        self._ahead = Ahead(self._made, _depth(spec, base.device))
        self.identity = identity
        self._parts = 1
        self._came_from: list[list[Visit]] = []
        """The batch of each loss of the last update."""

    @property
    def epoch(self) -> int:
        """The pass over the pictures, counted from 0."""
        return self._sampler.state.epoch

    def losses(self, micro_batches: int, noise: Generator) -> Iterator[Tensor]:
        """The mean over all batches of the update, a share each."""
        self._sampler.begin_update()
        self._came_from = []
        for _ in range(micro_batches):
            visits = self._sampler.next_batch()
            batch = self._moved(*self._ahead.take(tuple(visits), map(tuple, self._sampler.upcoming())))
            for loss in self._losses(batch, noise):
                self._came_from.append(visits)
                yield loss / micro_batches

    def divide(self, parts: int) -> bool:
        """Take each batch in this many parts; no more than it has pictures."""
        if parts > self._spec.train_batch_size:
            return False
        self._parts = parts
        return True

    def samples_of(self, loss: int) -> list[str]:
        """Dataset and file name of every picture of a loss's batch."""
        seen = [self._sampler.pictures[visit.picture] for visit in self._came_from[loss]]
        return [f"{picture.dataset_id}/{picture.path.name}" for picture in seen]

    def held_out_loss(self, pictures: list[Picture], draws: int) -> float:
        """The mean loss on pictures that are never trained on, over the same draws of noise at every call."""
        noise = torch.Generator().manual_seed(self._spec.seed)
        trained = self._model.training
        self._model.eval()
        total = 0.0
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self._autocast():
            for members in _of_one_size(pictures, self._spec.train_batch_size):
                told = [self._family.conditioning_of(picture.placement) for picture in members]
                captions = self._cached.conditioning([picture.captions[0] for picture in members])
                batch = self._moved(self._cached.latents(members), {**captions, **collated(told)})
                for _ in range(draws):
                    loss = training_loss(self._family, self._model, batch, self._noising, noise, self._spec)
                    total += float(loss) * len(members) / draws
        self._model.train(trained)
        return total / len(pictures)

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

    def _moved(self, latents: Tensor, conditioning: Conditioning) -> Batch:
        device, dtype = self._base.device, self._base.dtype
        return Batch(latents.to(device, dtype, non_blocking=True), placed(conditioning, device, dtype))

    def _losses(self, batch: Batch, noise: Generator) -> Iterator[Tensor]:
        """The batch's losses; a caller's backward pass runs between two of them, outside of autocast."""
        losses = training_losses(
            self._family, self._model, batch, self._noising, noise, self._spec, min(self._parts, len(batch.latents))
        )
        while True:
            with self._autocast():
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    def _autocast(self) -> torch.autocast:
        dtype = self._base.dtype
        return torch.autocast(self._base.device.type, dtype, enabled=dtype != torch.float32)

    def _made(self, visits: tuple[Visit, ...]) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of a batch on the CPU, from where a GPU can fetch them while it computes."""
        latents, conditioning = self._cached.of_visits(self._sampler.pictures, list(visits))
        placements = (self._sampler.pictures[visit.picture].placement for visit in visits)
        conditioning.update(collated([self._family.conditioning_of(placement) for placement in placements]))
        if self._base.device.type != "cuda":
            return latents, conditioning
        return latents.pin_memory(), {name: tensor.pin_memory() for name, tensor in conditioning.items()}


def _depth(spec: DiffusionSpec, device: torch.device) -> int:
    """How many batches are made ahead: where a device would wait for them, unless the config says otherwise."""
    wanted = device.type == "cuda" if spec.dataloader_prefetch is None else spec.dataloader_prefetch
    return spec.dataloader_prefetch_qlen if wanted else 0


def _of_one_size(pictures: list[Picture], count: int) -> Iterator[list[Picture]]:
    """At most `count` pictures at a time, which share one size."""
    by_size: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        by_size.setdefault(picture.placement.size, []).append(picture)
    for members in by_size.values():
        yield from (members[start : start + count] for start in range(0, len(members), count))
