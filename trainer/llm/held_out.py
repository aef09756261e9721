"""Which rows are never trained on: a dataset of their own, a share of all rows, or a few for predictions."""

import random
from dataclasses import dataclass

from trainer.failures import AttemptFailed
from trainer.llm.rows import Row

_SMALLEST_PART = 10
"""Without a share or a dataset of their own, predictions take at most every tenth row away from training."""


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to look at, each in the order of the files."""

    training: list[Row]
    held_out: list[Row]


def split_rows(rows: list[Row], own: list[Row], share: float, wanted: int, seed: int) -> Split:
    """`own` rows are held out as they are; without any, `share` of the rows, or `wanted` of them.

    The choice depends on the seed and the number of rows alone. Raises AttemptFailed(bad_data) when nothing is left to
    train on.
    """
    if own:
        return Split(rows, own)
    count = round(len(rows) * share) if share else min(wanted, len(rows) // _SMALLEST_PART)
    if wanted and not count and len(rows) > 1:
        count = 1
    if count >= len(rows):
        message = f"{len(rows)} rows leave nothing to train on when {count} are held out"
        raise AttemptFailed("bad_data", message, "Lower eval_split, or add rows.")
    chosen = set(random.Random(f"{seed}/held-out").sample(range(len(rows)), count))  # noqa: S311 -- repeatable
    training = [row for index, row in enumerate(rows) if index not in chosen]
    return Split(training, [rows[index] for index in sorted(chosen)])
