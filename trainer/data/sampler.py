"""The order of training: a pure function of (seed, epoch, what there is), so that resuming needs three numbers."""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from shared.contracts.training.datasets import DatasetSpec
from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.discover import Picture
from trainer.failures import AttemptFailed


@dataclass(frozen=True)
class Visit:
    """One picture in one batch: which caption it gets, or the empty prompt when `caption` is None."""

    picture: int
    caption: int | None


@dataclass(frozen=True)
class Plan:
    """How often and when one dataset is used. Epochs and steps count from 1; an end is the last one that counts."""

    batch_size: int
    repeats: int = 0
    weight: float = 1.0
    start_epoch: int = 1
    end_epoch: int | None = None
    start_step: int = 0
    end_step: int | None = None
    keeps_small_buckets: bool = False
    fills_small_buckets: bool = False

    def in_epoch(self, epoch: int) -> bool:
        """Whether the epoch, counted from 0, uses this dataset."""
        return self.start_epoch <= epoch + 1 and (self.end_epoch is None or epoch < self.end_epoch)

    def in_update(self, update: int) -> bool:
        """Whether the update, counted from 0, uses this dataset: updates after `start_step`, to `end_step`."""
        begun = self.start_step <= 1 or update >= self.start_step
        return begun and (self.end_step is None or update < self.end_step)


def plan_for(training: DiffusionSpec, dataset: DatasetSpec) -> Plan:
    """The dataset's own settings, and the config's where it has none."""
    return Plan(
        batch_size=dataset.train_batch_size or training.train_batch_size,
        # Where crops are drawn by chance, each pass is a picture of its own already.
        repeats=0 if dataset.crops_by_chance else dataset.repeats,
        weight=dataset.probability,
        start_epoch=dataset.start_epoch,
        end_epoch=dataset.end_epoch,
        start_step=dataset.start_step,
        end_step=dataset.end_step,
        keeps_small_buckets=training.disable_bucket_pruning,
        fills_small_buckets=training.allow_dataset_oversubscription and dataset.repeats == 0,
    )


@dataclass
class SamplerState:
    """`epoch` counts from 0; `position` is the next batch in it; `update` the number of updates that were begun."""

    epoch: int = 0
    position: int = 0
    update: int = 0


@dataclass(frozen=True)
class Bucket:
    """The pictures of one dataset and one size, each as often as an epoch visits it."""

    key: str
    plan: Plan
    members: list[int]
    weight: float


class Sampler:
    """Cuts pictures into batches of one size each. The pictures must keep their order between runs.

    `uniform` gives every dataset the same share of the order, whatever its size; else each batch has its weight.
    """

    def __init__(
        self, pictures: list[Picture], plans: dict[str, Plan], seed: int, dropout: float, *, uniform: bool = False
    ) -> None:
        self._plans, self._seed, self._dropout = plans, seed, dropout
        self._uniform = uniform
        self.pictures = pictures
        """What visits number."""
        self.notes: list[str] = []
        """What was left out or added because a bucket cannot fill a batch, as sentences."""
        self._buckets = self._full_buckets(uniform=uniform)
        self.state = SamplerState()
        self._batches = self.batches_of(0)

    @property
    def identity(self) -> str:
        """A hash of all settings that decide the order, apart from the pictures themselves."""
        settings = (sorted(self._plans.items()), self._seed, self._dropout, self._uniform)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def batches_in(self, epochs: int) -> int:
        """How many batches the first epochs have together."""
        scheduled = any(plan.start_epoch > 1 or plan.end_epoch is not None for plan in self._plans.values())
        if not scheduled:
            return epochs * len(self.batches_of(0))
        return sum(len(self.batches_of(epoch)) for epoch in range(epochs))

    def restore(self, state: SamplerState) -> None:
        """Go on from a stored position."""
        self.state = SamplerState(state.epoch, state.position, state.update)
        self._batches = self.batches_of(state.epoch)

    def begin_update(self) -> None:
        """The batches that follow belong to the next update."""
        self.state.update += 1

    def next_batch(self) -> list[Visit]:
        """The next batch of a dataset that is in use; a new epoch begins when the last one is used up.

        Raises AttemptFailed(bad_data) when no dataset is in use any more.
        """
        for _ in range(max(plan.start_epoch for plan in self._plans.values()) + 2):
            while self.state.position < len(self._batches):
                batch = self._batches[self.state.position]
                self.state.position += 1
                if self._in_use(batch):
                    self._turn_over()
                    return batch
            self._turn_over()
        message = f"no dataset is used in epoch {self.state.epoch + 1}, step {self.state.update}"
        raise AttemptFailed("bad_data", message, "Correct end_epoch and end_step of the datasets.")

    def upcoming(self) -> Iterator[list[Visit]]:
        """What is left of this epoch after the last batch; some of it may be passed over."""
        return (self._batches[place] for place in range(self.state.position, len(self._batches)))

    def batches_of(self, epoch: int) -> list[list[Visit]]:
        """All batches of an epoch in order. What does not fill a last batch waits for another epoch's shuffle."""
        weighed: list[tuple[float, list[Visit]]] = []
        order = random.Random(f"{self._seed}/{epoch}")  # noqa: S311 -- repeatable on purpose
        for bucket in self._buckets:
            if not bucket.plan.in_epoch(epoch):
                continue
            chance = random.Random(f"{self._seed}/{epoch}/{bucket.key}")  # noqa: S311 -- repeatable on purpose
            visits = [self._visit(picture, chance) for picture in chance.sample(bucket.members, len(bucket.members))]
            size = min(bucket.plan.batch_size, len(visits))
            for start in range(0, len(visits) - len(visits) % size, size):
                # The smallest of these comes first: drawing one by one, each as likely as its weight.
                moment = -math.log(1.0 - order.random()) / bucket.weight
                weighed.append((moment, visits[start : start + size]))
        weighed.sort(key=lambda each: each[0])
        return [batch for _, batch in weighed]

    def _turn_over(self) -> None:
        if self.state.position >= len(self._batches):
            self.restore(SamplerState(self.state.epoch + 1, 0, self.state.update))

    def _in_use(self, batch: list[Visit]) -> bool:
        plan = self._plans[self.pictures[batch[0].picture].dataset_id]
        return plan.in_update(max(0, self.state.update - 1))

    def _visit(self, picture: int, order: random.Random) -> Visit:
        caption = order.randrange(len(self.pictures[picture].captions))
        return Visit(picture, None if order.random() < self._dropout else caption)

    def _full_buckets(self, *, uniform: bool) -> list[Bucket]:
        found: dict[str, list[int]] = defaultdict(list)
        datasets: dict[str, str] = {}
        for index, picture in enumerate(self.pictures):
            width, height = picture.placement.size
            key = f"{picture.dataset_id}/{width}x{height}"
            found[key].extend([index] * (self._plans[picture.dataset_id].repeats + 1))
            datasets[key] = picture.dataset_id
        full = {key: self._filled(key, self._plans[datasets[key]], members) for key, members in found.items()}
        if not any(full.values()):
            raise AttemptFailed("bad_data", "no bucket fills a batch: " + "; ".join(self.notes), "Raise repeats.")
        batches: dict[str, int] = defaultdict(int)
        for key, members in full.items():
            batches[datasets[key]] += -(-len(members) // self._plans[datasets[key]].batch_size)
        return [
            Bucket(key, plan, members, plan.weight / (batches[datasets[key]] if uniform else 1))
            for key, members in full.items()
            if members and (plan := self._plans[datasets[key]])
        ]

    def _filled(self, key: str, plan: Plan, members: list[int]) -> list[int]:
        """The members, more passes over them where that is allowed, or none."""
        if len(members) >= plan.batch_size or plan.keeps_small_buckets:
            return members
        different = len(set(members))
        needed = -(-plan.batch_size // different) - 1
        sentence = f"{key} has {different} pictures for batches of {plan.batch_size}"
        if plan.fills_small_buckets:
            self.notes.append(f"{sentence}: its pictures are repeated {needed} times")
            return sorted(set(members)) * (needed + 1)
        self.notes.append(f"{sentence}: set repeats >= {needed}")
        return []
