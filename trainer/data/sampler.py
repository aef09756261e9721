"""The order of training: a pure function of (seed, epoch, what there is), so that resuming needs two numbers."""

import random
from collections import defaultdict
from dataclasses import dataclass

from trainer.data.discover import Picture
from trainer.failures import AttemptFailed


@dataclass(frozen=True)
class Visit:
    """One picture in one batch: which caption it gets, or the empty prompt when `caption` is None."""

    picture: int
    caption: int | None


@dataclass
class SamplerState:
    """`epoch` counts from 0; `position` is the next batch in it."""

    epoch: int = 0
    position: int = 0


class Sampler:
    """Cuts pictures into batches of one size each. The pictures must keep their order between runs."""

    def __init__(
        self, pictures: list[Picture], repeats: dict[str, int], batch_size: int, seed: int, dropout: float
    ) -> None:
        self._pictures = pictures
        self._batch_size = batch_size
        self._seed = seed
        self._dropout = dropout
        self.pruned: list[str] = []
        """What was left out because its bucket cannot fill a batch, as sentences with the repeats that would help."""
        self._buckets = self._full_buckets(repeats)
        self.state = SamplerState()
        self._batches = self.batches_of(0)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches one epoch has; the same in each."""
        return len(self._batches)

    def restore(self, state: SamplerState) -> None:
        """Go on from a stored position."""
        self.state = state
        self._batches = self.batches_of(state.epoch)

    def next_batch(self) -> list[Visit]:
        """The next batch; a new epoch begins when the last one is used up."""
        if self.state.position >= len(self._batches):
            self.restore(SamplerState(epoch=self.state.epoch + 1, position=0))
        batch = self._batches[self.state.position]
        self.state.position += 1
        return batch

    def batches_of(self, epoch: int) -> list[list[Visit]]:
        """All batches of an epoch in order. What does not fill a last batch waits for another epoch's shuffle."""
        batches: list[list[Visit]] = []
        for key, members in self._buckets.items():
            order = random.Random(f"{self._seed}/{epoch}/{key}")  # noqa: S311 -- repeatable on purpose
            shuffled = order.sample(members, len(members))
            visits = [self._visit(picture, order) for picture in shuffled]
            usable = len(visits) - len(visits) % self._batch_size
            batches.extend(visits[start : start + self._batch_size] for start in range(0, usable, self._batch_size))
        random.Random(f"{self._seed}/{epoch}").shuffle(batches)  # noqa: S311 -- repeatable on purpose
        return batches

    def _visit(self, picture: int, order: random.Random) -> Visit:
        caption = order.randrange(len(self._pictures[picture].captions))
        return Visit(picture, None if order.random() < self._dropout else caption)

    def _full_buckets(self, repeats: dict[str, int]) -> dict[str, list[int]]:
        buckets: dict[str, list[int]] = defaultdict(list)
        for index, picture in enumerate(self._pictures):
            width, height = picture.placement.size
            passes = repeats.get(picture.dataset_id, 0) + 1
            buckets[f"{picture.dataset_id}/{width}x{height}"].extend([index] * passes)
        full: dict[str, list[int]] = {}
        for key, members in buckets.items():
            if len(members) >= self._batch_size:
                full[key] = members
                continue
            different = len(set(members))
            needed = -(-self._batch_size // different) - 1
            self.pruned.append(
                f"{key} has {different} pictures for batches of {self._batch_size}: set repeats >= {needed}"
            )
        if not full:
            raise AttemptFailed("bad_data", "no bucket fills a batch: " + "; ".join(self.pruned), "Raise repeats.")
        return full
