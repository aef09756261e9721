# pyright: basic
"""Teaching a language model: answers (SFT) or preferences (DPO), in batches whose losses add up over one update."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from shared.contracts.training.llm import LlmSpec
from trainer.llm.batches import BatchOrder, TokenBatch, collate
from trainer.llm.losses import PreferenceLoss, log_probabilities, preference_loss, token_losses
from trainer.llm.tokens import Example
from trainer.train.precision import Precision


class LanguageTask:
    """What both methods share: the order of data, and what a checkpoint must fit."""

    def __init__(
        self, model: Any, order: BatchOrder, spec: LlmSpec, precision: Precision, pad_id: int, identity: dict[str, Any]
    ) -> None:
        self._model, self._order, self._spec, self._precision, self._pad_id = model, order, spec, precision, pad_id
        self.identity = identity
        self._figures: dict[str, float] = {}

    @property
    def epoch(self) -> int:
        """The pass over the rows, counted from 0."""
        return self._order.epoch

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one pass."""
        return self._order.batches_per_epoch

    def figures(self) -> dict[str, float]:
        """What else the last update measured."""
        return self._figures

    def position(self) -> dict[str, Any]:
        """Epoch and batch."""
        return {"epoch": self._order.epoch, "batch": self._order.position}

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on from a stored position."""
        self._order.restore(position["epoch"], position["batch"])

    def load_of_one_batch(self) -> str:
        """Batch size and length."""
        return f"batch {self._spec.train_batch_size} of up to {self._spec.max_length} tokens"

    def advice_for_less_memory(self) -> str:
        """Shorter rows."""
        return f"Set max_length to {max(2, self._spec.max_length * 3 // 4)} or lower, or train with quantization 4bit."

    def batch(self, rows: Sequence[Sequence[Example]]) -> TokenBatch:
        """Rows of documents as one batch on the device."""
        return collate(rows, self._pad_id).to(self._precision.device)

    def mixed(self) -> torch.autocast:
        """The number type of the computation."""
        dtype = self._precision.dtype
        return torch.autocast(self._precision.device.type, dtype, enabled=dtype != torch.float32)


class SftTask(LanguageTask):
    """Cross-entropy of the learned tokens. `rows` are examples, several in one row when packed."""

    def __init__(
        self, model: Any, rows: Sequence[Sequence[Example]], order: BatchOrder, spec: LlmSpec, precision: Precision,
        pad_id: int, identity: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(model, order, spec, precision, pad_id, identity)
        self._rows = rows

    def losses(self, micro_batches: int, noise: Generator) -> Iterator[Tensor]:  # noqa: ARG002 -- nothing is drawn
        """Each batch's summed loss over the tokens of the whole update: every token weighs the same."""
        chosen = [[self._rows[index] for index in self._order.next_batch()] for _ in range(micro_batches)]
        batches = [self.batch(rows) for rows in chosen]
        total = sum(len(batch.targets) for batch in batches)
        examples = [example for rows in chosen for row in rows for example in row]
        self._figures = {"samples": len(examples), "tokens": sum(map(len, examples))}
        for batch in batches:
            with self.mixed():
                losses = token_losses(self._model, batch)
            yield losses.sum() / total

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """`eval_loss`: the mean loss of the learned tokens of held-out rows."""
        summed, count = 0.0, 0
        for group in _groups(examples, self._spec.train_batch_size):
            with self.mixed():
                losses = token_losses(self._model, self.batch([[example] for example in group]))
            summed, count = summed + losses.sum().item(), count + len(losses)
        return {"eval_loss": summed / count} if count else {}


class DpoTask(LanguageTask):
    """Direct preference optimisation of pairs against what the reference thought of them, [N, 2] in `reference`."""

    def __init__(
        self, model: Any, pairs: Sequence[tuple[Example, Example]], order: BatchOrder, spec: LlmSpec,
        precision: Precision, pad_id: int, identity: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(model, order, spec, precision, pad_id, identity)
        self._pairs = pairs
        self.reference = torch.zeros(len(pairs), 2)
        self.held_out_reference = torch.zeros(0, 2)

    def losses(self, micro_batches: int, noise: Generator) -> Iterator[Tensor]:  # noqa: ARG002 -- nothing is drawn
        """Each batch's summed loss over the pairs of the whole update."""
        chosen = [self._order.next_batch() for _ in range(micro_batches)]
        total = sum(map(len, chosen))
        made: list[PreferenceLoss] = []
        for batch in chosen:
            with self.mixed():
                loss = self.loss_of([self._pairs[index] for index in batch], self.reference[batch])
            made.append(loss)
            if len(made) == len(chosen):
                self._figures = {"samples": total, **figures_of(made)}
            yield loss.losses.sum() / total

    def evaluate(self, pairs: Sequence[tuple[Example, Example]]) -> dict[str, float]:
        """Loss, share of right preferences and mean margin of held-out pairs."""
        made: list[PreferenceLoss] = []
        for start in range(0, len(pairs), self._spec.train_batch_size):
            some = slice(start, start + self._spec.train_batch_size)
            with self.mixed():
                made.append(self.loss_of(pairs[some], self.held_out_reference[some]))
        if not made:
            return {}
        loss = torch.cat([each.losses for each in made]).mean().item()
        return {"eval_loss": loss, **{f"eval_{name}": value for name, value in figures_of(made).items()}}

    def loss_of(self, pairs: Sequence[tuple[Example, Example]], reference: Tensor) -> PreferenceLoss:
        """The loss of pairs whose reference log-probabilities are [B, 2]."""
        policy = self.pair_log_probabilities(pairs)
        return preference_loss(policy, reference.T.to(policy.device), self._spec.beta, self._spec.label_smoothing)

    def pair_log_probabilities(self, pairs: Sequence[tuple[Example, Example]]) -> Tensor:
        """Log-probabilities [2, B] of the chosen and the rejected answers, from one pass."""
        rows = [[pair[0]] for pair in pairs] + [[pair[1]] for pair in pairs]
        return log_probabilities(self._model, self.batch(rows)).reshape(2, len(pairs))


def figures_of(made: Sequence[PreferenceLoss]) -> dict[str, float]:
    """How right and how sure the preferences are, over all pairs."""
    chosen = torch.cat([each.chosen_rewards for each in made])
    rejected = torch.cat([each.rejected_rewards for each in made])
    # Stacked, so that a GPU is waited for once.
    right, margin = (chosen > rejected).float().mean(), (chosen - rejected).mean()
    values = torch.stack([right, margin, chosen.mean(), rejected.mean()]).tolist()
    names = ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward")
    return dict(zip(names, values, strict=True))


def digest_of(examples: Sequence[Example]) -> str:
    """A hash of token ids and marks, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example).to_bytes(8, "big"))
        digest.update(example.ids.tobytes())
        digest.update(example.learned.tobytes())
    return digest.hexdigest()


def _groups(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
