# pyright: basic
"""Losses of language models. Only learned positions go through the vocabulary: the rest of the projection is saved."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.llm.batches import TokenBatch


def token_losses(model: Any, batch: TokenBatch) -> Tensor:
    """Cross-entropy [N] in float32 of the N learned tokens in reading order."""

    def keep_learned(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].flatten(0, 1).index_select(0, batch.learned_at), *inputs[1:])

    # The head is told its positions by a hook, so that what a model does to its logits afterwards still happens.
    hook = model.get_output_embeddings().register_forward_pre_hook(keep_learned)
    try:
        logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits
    finally:
        hook.remove()
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def log_probabilities(model: Any, batch: TokenBatch) -> Tensor:
    """The log-probability [B] of each row's learned tokens together."""
    losses = token_losses(model, batch)
    return torch.zeros(len(batch.ids), device=losses.device).index_add(0, batch.rows, -losses)


@dataclass(frozen=True)
class PreferenceLoss:
    """Direct preference optimisation of B pairs."""

    losses: Tensor
    """[B], with gradient."""
    chosen_rewards: Tensor
    """[B], beta times how much likelier the chosen answer became than under the reference."""
    rejected_rewards: Tensor


def preference_loss(policy: Tensor, reference: Tensor, beta: float, label_smoothing: float) -> PreferenceLoss:
    """The sigmoid loss of log-probabilities [2, B]: chosen answers first, then the rejected ones of the same pairs.

    `label_smoothing` is the share of pairs whose labels are taken to be swapped.
    """
    rewards = beta * (policy - reference)
    margin = rewards[0] - rewards[1]
    right, swapped = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    losses = -(1 - label_smoothing) * right - label_smoothing * swapped
    return PreferenceLoss(losses, rewards[0].detach(), rewards[1].detach())
