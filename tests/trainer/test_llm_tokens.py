# pyright: basic
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny.qwen2 import train_tokenizer
from transformers import AutoModelForCausalLM

from trainer.failures import AttemptFailed
from trainer.llm.batches import BatchOrder, collate, packed_bins
from trainer.llm.losses import log_probabilities, preference_loss, token_losses
from trainer.llm.rows import Message, Row
from trainer.llm.tokens import Encoder, Example

DIALOGUE = Row(
    "a:1",
    (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "And?")),
    ((Message("assistant", "Goodbye."),),),
    every_answer=True,
)
PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHTFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n</think>\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(dialogues: list[tuple[str, str]]) -> Any:
    return train_tokenizer([" ".join(pair) for pair in dialogues], 600)


def learned_text(encoder: Encoder, row: Row, **options: Any) -> str:
    (example,) = encoder.examples(row, **options)
    return encoder.tokenizer.decode([int(t) for t, mark in zip(example.ids, example.learned, strict=True) if mark])


@pytest.mark.parametrize("template", [None, "chatml", PLAIN_CHATML])
def test_exactly_the_assistants_turns_and_their_ends_are_learned(tokenizer: Any, template: str | None) -> None:
    assert learned_text(Encoder(tokenizer, 256, template), DIALOGUE) == "Hello.<|im_end|>Goodbye.<|im_end|>"


def test_a_template_that_shortens_earlier_answers_is_understood(tokenizer: Any) -> None:
    text = learned_text(Encoder(tokenizer, 256, THOUGHTFUL), DIALOGUE)
    assert text == "Hello.<|im_end|><think>\n</think>\nGoodbye.<|im_end|>"


def test_an_end_is_added_where_the_template_has_none(tokenizer: Any) -> None:
    one = Row("a:1", (Message("user", "Hi"),), ((Message("assistant", "Hello."),),), every_answer=True)
    assert learned_text(Encoder(tokenizer, 256, BARE), one) == " Hello.<|im_end|>"


def test_of_a_completion_only_its_own_turns_are_learned(tokenizer: Any) -> None:
    row = Row("a:1", DIALOGUE.prompt, DIALOGUE.answers)
    for template in ("chatml", PLAIN_CHATML):
        assert learned_text(Encoder(tokenizer, 256, template), row) == "Goodbye.<|im_end|>"


def test_text_is_learned_whole_and_a_completion_without_its_prompt(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 256, "chatml")
    assert learned_text(encoder, Row("a:1", "", ("once upon",))) == "once upon<|im_end|>"
    assert learned_text(encoder, Row("a:1", "2 + 2 =", (" 4",))) == " 4<|im_end|>"
    assert learned_text(encoder, Row("a:1", "2 + 2 =", (" 4",)), learn_all=True) == "2 + 2 = 4<|im_end|>"


def test_a_long_row_loses_its_end_and_says_so(tokenizer: Any) -> None:
    (example,) = Encoder(tokenizer, 8, "chatml").examples(Row("a:1", "", ("many words " * 20,)))
    assert (len(example), example.truncated) == (8, True)
    (example,) = Encoder(tokenizer, 4, "chatml").examples(DIALOGUE)
    assert example.label_count == 0


def test_a_template_that_cannot_tell_whose_text_is_whose_is_refused(tokenizer: Any) -> None:
    backwards = "{% for m in messages|reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(AttemptFailed, match="a:1: the chat template renders earlier turns differently") as failed:
        Encoder(tokenizer, 64, backwards).examples(DIALOGUE)
    assert "chatml" in failed.value.advice


def test_dialogues_need_a_chat_template(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 64, "chatml")
    tokenizer.chat_template = None
    with pytest.raises(AttemptFailed, match="has no chat template"):
        encoder.prompt_ids(DIALOGUE)


def test_the_prompt_of_a_prediction_ends_where_the_answer_begins(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 256, "chatml")
    assert tokenizer.decode(encoder.prompt_ids(DIALOGUE)).endswith("And?<|im_end|>\n<|im_start|>assistant\n")


def test_an_epoch_visits_every_example_once_in_an_order_of_seed_and_epoch() -> None:
    order = BatchOrder([7, 3, 9, 3, 5, 8, 2] * 5, batch_size=4, seed=3)
    first = [order.next_batch() for _ in range(order.batches_per_epoch)]
    assert sorted(index for batch in first for index in batch) == list(range(35))
    assert sorted(map(len, first)) == [3, 4, 4, 4, 4, 4, 4, 4, 4]
    second = [order.next_batch() for _ in range(order.batches_per_epoch)]
    assert order.epoch == 1
    assert first != second
    again = BatchOrder([7, 3, 9, 3, 5, 8, 2] * 5, batch_size=4, seed=3)
    again.restore(1, 4)
    assert again.next_batch() == second[4]


def test_batches_hold_examples_of_about_one_length() -> None:
    lengths = [1 + (7 * number) % 100 for number in range(400)]
    order = BatchOrder(lengths, batch_size=8, seed=0)
    padded = sum(8 * max(lengths[index] for index in batch) for batch in order.batches_of(0))
    assert padded < 1.1 * sum(lengths)


def test_packing_fills_rows_and_never_splits_or_loses_an_example() -> None:
    lengths = [1 + (37 * number) % 60 for number in range(200)]
    bins = packed_bins(lengths, 64)
    assert sorted(index for members in bins for index in members) == list(range(200))
    assert all(sum(lengths[index] for index in members) <= 64 for members in bins)
    assert sum(lengths) / (64 * len(bins)) > 0.95


def examples_of(lengths: list[int], vocabulary: int) -> list[Example]:
    draw = np.random.default_rng(0)
    return [Example("a:1", draw.integers(0, vocabulary, n).astype(np.int32), draw.random(n) < 0.6) for n in lengths]


@pytest.fixture(scope="module")
def model(new_qwen: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(new_qwen, dtype=torch.float32, local_files_only=True).eval()


def test_packed_loss_equals_the_loss_of_each_document_alone(model: Any) -> None:
    examples = examples_of([9, 5, 12, 3, 7, 4], 500)
    alone = torch.cat([token_losses(model, collate([[example]], 0)) for example in examples])
    packed = token_losses(model, collate([examples[:3], examples[3:]], 0))
    padded = token_losses(model, collate([[example] for example in examples], 0))
    assert len(alone) == sum(example.label_count for example in examples)
    assert torch.allclose(packed, alone, atol=2e-5)
    assert torch.allclose(padded, alone, atol=2e-5)


def test_learned_positions_alone_give_the_loss_of_the_whole_projection(model: Any) -> None:
    examples = examples_of([9, 5], 500)
    ours = token_losses(model, collate([[example] for example in examples], 0))
    whole = []
    for example in examples:
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        labels = ids.masked_fill(~torch.from_numpy(example.learned)[None], -100)
        logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=-100)
        whole.append(losses[labels[0, 1:] != -100])
    assert torch.allclose(ours, torch.cat(whole), atol=1e-5)


def test_log_probabilities_are_summed_over_each_row(model: Any) -> None:
    examples = examples_of([9, 5], 500)
    batch = collate([[example] for example in examples], 0)
    losses = token_losses(model, batch)
    first = examples[0].label_count
    assert torch.allclose(log_probabilities(model, batch), -torch.stack([losses[:first].sum(), losses[first:].sum()]))


def test_preference_loss_of_a_known_margin() -> None:
    policy, reference = torch.tensor([[-1.0], [-3.0]]), torch.tensor([[-2.0], [-2.0]])
    loss = preference_loss(policy, reference, beta=0.5, label_smoothing=0.1)
    right, swapped = torch.nn.functional.logsigmoid(torch.tensor([1.0, -1.0]))
    assert loss.losses.item() == pytest.approx(-(0.9 * right + 0.1 * swapped).item())
    assert (loss.chosen_rewards.item(), loss.rejected_rewards.item()) == (0.5, -0.5)
