# pyright: basic
"""What the reference model thinks of the pairs, computed once and kept on disk by content."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.control import Control
from trainer.data.cache import TensorCache
from trainer.llm.part import LanguagePart
from trainer.llm.tasks import DpoTask, digest_of
from trainer.llm.tokens import Example

_PAIRS_PER_ENTRY = 32


def reference_log_probabilities(
    task: DpoTask, part: LanguagePart, pairs: Sequence[tuple[Example, Example]], base_id: str, cache: TensorCache,
    control: Control,
) -> Tensor:  # fmt: skip
    """Log-probabilities [N, 2] of chosen and rejected answers under the base model.

    Pairs are grouped by length before anything is looked up, so a run that was killed half way computes the same
    groups again and gets the same bits. `base_id` names the base model and its number type.
    """
    found = torch.zeros(len(pairs), 2)
    order = sorted(range(len(pairs)), key=lambda index: -max(len(example) for example in pairs[index]))
    part.model.eval()
    with torch.no_grad(), part.as_reference():
        for start in range(0, len(order), _PAIRS_PER_ENTRY):
            control.raise_if_superseded()
            if (ending := control.ending("while preparing")) is not None:
                raise ending.failure
            group = order[start : start + _PAIRS_PER_ENTRY]
            some = [pairs[index] for index in group]
            key = hashlib.sha256(f"reference/{base_id}/{digest_of([e for pair in some for e in pair])}".encode())
            if key.hexdigest() not in cache:
                with task.mixed():
                    values = task.pair_log_probabilities(some).T
                cache.store(key.hexdigest(), {"log_probabilities": values.float().cpu().contiguous()})
            found[group] = cache.load(key.hexdigest())["log_probabilities"]
    return found
