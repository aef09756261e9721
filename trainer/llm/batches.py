# pyright: basic
"""The order of examples and their batches: a pure function of seed and epoch, so resuming needs two numbers."""

import random
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.llm.tokens import Example

_GROUPED_BATCHES = 50
"""Examples are sorted by length within this many batches, then the batches are shuffled: little padding."""


class BatchOrder:
    """Cuts `lengths` into batches of indices. A last smaller batch stays: losses are weighted by tokens."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self.epoch = 0
        self.position = 0
        self._batches = self.batches_of(0)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches one epoch has; the same in each."""
        return -(-len(self._lengths) // self._batch_size)

    def restore(self, epoch: int, position: int) -> None:
        """Go on from a stored place."""
        self.epoch, self.position = epoch, position
        self._batches = self.batches_of(epoch)

    def next_batch(self) -> list[int]:
        """The next batch; a new epoch begins when the last one is used up."""
        if self.position >= len(self._batches):
            self.restore(self.epoch + 1, 0)
        batch = self._batches[self.position]
        self.position += 1
        return batch

    def batches_of(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch in order, each of examples of about one length."""
        order = random.Random(f"{self._seed}/{epoch}")  # noqa: S311 -- repeatable on purpose
        shuffled = order.sample(range(len(self._lengths)), len(self._lengths))
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), self._batch_size * _GROUPED_BATCHES):
            group = shuffled[start : start + self._batch_size * _GROUPED_BATCHES]
            group.sort(key=lambda index: -self._lengths[index])
            batches.extend(group[at : at + self._batch_size] for at in range(0, len(group), self._batch_size))
        order.shuffle(batches)
        return batches


def packed_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices in bins of at most `capacity` tokens; the same bins for the same lengths."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """(free tokens, bin), ascending."""
    for index in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        place = _first_with_room(room, lengths[index])
        if place is None:
            bins.append([])
            free, number = capacity, len(bins) - 1
        else:
            free, number = room.pop(place)
        bins[number].append(index)
        insort(room, (free - lengths[index], number))
    return bins


def _first_with_room(room: list[tuple[int, int]], length: int) -> int | None:
    low, high = 0, len(room)
    while low < high:
        middle = (low + high) // 2
        if room[middle][0] < length:
            low = middle + 1
        else:
            high = middle
    return low if low < len(room) else None


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids [B, T], padded at the right, and the N predictions that are learned.

    No attention mask: attention looks back only, so no token ever sees the padding behind it. `positions` is None
    unless documents are packed; there they begin anew with each document, and attention stays within it.
    """

    ids: Tensor
    positions: Tensor | None
    learned_at: Tensor
    """[N], where each prediction is made, as an index into the B * T tokens."""
    targets: Tensor
    """[N], the token that comes next there."""
    rows: Tensor
    """[N], the row of each."""

    def to(self, device: torch.device) -> "TokenBatch":
        """The same on another device."""
        positions = None if self.positions is None else self.positions.to(device, non_blocking=True)
        others = (self.learned_at, self.targets, self.rows)
        return TokenBatch(
            self.ids.to(device, non_blocking=True), positions, *(each.to(device, non_blocking=True) for each in others)
        )


def collate(rows: Sequence[Sequence[Example]], pad_id: int) -> TokenBatch:
    """A batch of rows that hold one document each, or several when packed. Counted here, where no device waits."""
    width = max(sum(len(document) for document in row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    learned = np.zeros((len(rows), width), dtype=bool)
    positions = np.tile(np.arange(width), (len(rows), 1))
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document)
            ids[number, at:end] = document.ids
            # A prediction is made one place before its token, and never across the beginning of a document.
            learned[number, at : end - 1] = document.learned[1:]
            positions[number, at:end] = np.arange(len(document))
            at = end
        positions[number, at:] = np.arange(width - at)
    packed = any(len(row) > 1 for row in rows)
    learned_at = np.flatnonzero(learned)
    return TokenBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions) if packed else None,
        learned_at=torch.from_numpy(learned_at),
        targets=torch.from_numpy(ids.reshape(-1)[learned_at + 1]),
        rows=torch.from_numpy(learned_at // width),
    )
