# pyright: basic
"""Rows as token ids with the tokens that are learned marked: the answers and the end after them, nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from trainer.failures import AttemptFailed
from trainer.llm.rows import Message, Row, Turns

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The layout that `chat_template: chatml` stands for; for base models that bring none."""
_MARKED = "{% generation"
_TEMPLATE_ADVICE = (
    "Set chat_template to chatml, or to a template that marks the assistant's text with generation blocks, or give "
    "the rows as prompt and completion."
)


@dataclass(frozen=True)
class Example:
    """Token ids [T] (int32) of one row and which of them are learned [T] (bool)."""

    place: str
    ids: np.ndarray
    learned: np.ndarray
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def label_count(self) -> int:
        """How many next-token predictions count: the first token is predicted from nothing."""
        return int(self.learned[1:].sum())


class Encoder:
    """Turns rows into examples of at most `max_length` tokens; longer ones lose their end."""

    def __init__(self, tokenizer: Any, max_length: int, chat_template: str | None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        if chat_template is not None:
            tokenizer.chat_template = CHATML if chat_template == "chatml" else chat_template
        if tokenizer.eos_token_id is None:
            message = "the tokenizer has no end-of-text token, so no answer could ever end"
            raise AttemptFailed("bad_config", message, "Choose a base model whose tokenizer names an eos_token.")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        special = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *special}
        """Tokens that end a turn or a text."""

    def examples(self, row: Row, *, learn_all: bool = False) -> list[Example]:
        """One example for each answer of the row; `learn_all` marks the prompt's tokens too.

        Raises AttemptFailed when the tokenizer has no chat template or it cannot tell whose text is whose.
        """
        made: list[Example] = []
        for answer in row.answers:
            if isinstance(row.prompt, str):
                ids, learned = self._joined(row.prompt, str(answer))
            else:
                ids, learned = self._dialogue(row.prompt, answer, row)  # pyright: ignore[reportArgumentType] -- turns, as the prompt is
            kept = np.asarray(ids[: self.max_length], dtype=np.int32)
            marks = np.asarray(learned[: self.max_length], dtype=bool)
            made.append(Example(row.place, kept, np.ones_like(marks) if learn_all else marks, len(ids) > len(kept)))
        return made

    def prompt_ids(self, row: Row) -> list[int]:
        """What a prediction goes on from, ending where the assistant begins; cut at the front when too long."""
        if isinstance(row.prompt, str):
            ids = list(self.tokenizer(row.prompt)["input_ids"])
        else:
            ids = self._ids(self._rendered(row.prompt, asks=True))
        return ids[-self.max_length :]

    def _joined(self, prompt: str, answer: str) -> tuple[list[int], list[bool]]:
        """Prompt and answer as one text with the end after it."""
        whole = prompt + answer
        encoded = self.tokenizer(whole, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        return self._ended(ids, _within(encoded["offset_mapping"], [(len(prompt), len(whole))]))

    def _dialogue(self, prompt: Turns, answer: Turns, row: Row) -> tuple[list[int], list[bool]]:
        turns = (*prompt, *answer)
        first = 0 if row.every_answer else len(prompt)
        wanted = [index for index in range(first, len(turns)) if turns[index].role == "assistant"]
        if _MARKED in str(self.tokenizer.chat_template):
            ids, learned = self._marked(turns)
            if not row.every_answer:
                start = len(self._ids(self._rendered(prompt, asks=True)))
                learned = [mark and index >= start for index, mark in enumerate(learned)]
        else:
            whole = self._rendered(turns)
            spans = [self._span(whole, turns, index, row.place) for index in wanted]
            encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            ids = list(encoded["input_ids"])
            learned = _within(encoded["offset_mapping"], spans)
        return self._ended(ids, learned)

    def _marked(self, turns: Turns) -> tuple[list[int], list[bool]]:
        encoded = self.tokenizer.apply_chat_template(
            _plain(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def _ended(self, ids: list[int], learned: list[bool]) -> tuple[list[int], list[bool]]:
        """The end token is learned after the last answer: where it stands already, or else added."""
        end = self.tokenizer.eos_token_id
        last = max((index for index, mark in enumerate(learned) if mark), default=None)
        if last is None:
            return ids, learned
        if ids[last] in self._ends:
            return ids, learned
        if last + 1 < len(ids) and ids[last + 1] in self._ends:
            learned[last + 1] = True
            return ids, learned
        return [*ids[: last + 1], end], [*learned[: last + 1], True]

    def _span(self, whole: str, turns: Turns, index: int, place: str) -> tuple[int, int]:
        """Where turn `index` stands in the rendered dialogue, its end token included, white space after it not."""
        before = self._rendered(turns[:index], asks=True)
        until = self._rendered(turns[: index + 1])
        if not whole.startswith(before):
            message = f"{place}: the chat template renders earlier turns differently once later ones follow"
            raise AttemptFailed("bad_config", message, _TEMPLATE_ADVICE)
        if whole.startswith(until) and len(until) > len(before):
            return len(before), len(until.rstrip())
        # Some templates shorten earlier answers (thoughts are left out): the turn ends with the end token.
        end = whole.find(self.tokenizer.eos_token, len(before))
        if end < 0:
            message = f"{place}: the chat template does not tell where an answer ends"
            raise AttemptFailed("bad_config", message, _TEMPLATE_ADVICE)
        return len(before), end + len(self.tokenizer.eos_token)

    def _rendered(self, turns: Turns, *, asks: bool = False) -> str:
        if not self.tokenizer.chat_template:
            message = "the rows are dialogues or instructions, and the base model has no chat template"
            raise AttemptFailed("bad_config", message, _TEMPLATE_ADVICE)
        try:
            return self.tokenizer.apply_chat_template(_plain(turns), tokenize=False, add_generation_prompt=asks)
        except (TemplateError, ValueError) as error:
            message = f"the chat template refuses a dialogue of {', '.join(turn.role for turn in turns)}: {error}"
            raise AttemptFailed("bad_data", message, "Correct the roles' order, or set chat_template.") from error

    def _ids(self, rendered: str) -> list[int]:
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _within(ranges: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens have characters in a span; one that begins before it too. A token without text has none."""
    return [any(start < stop and end > begin and end > start for begin, stop in spans) for start, end in ranges]


def _plain(turns: Turns) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def turns_text(turns: str | tuple[Message, ...]) -> str:
    """A prompt or an answer for people: plain text as it stands, one turn's content, or all turns with their roles."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)
