# pyright: basic
"""What the model says to held-out prompts: greedy, from the base at step 0 on, so that charts begin with the base."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.llm.rows import Row
from trainer.llm.tokens import Encoder, turns_text

_BATCH = 8


class Predictor:
    """Goes on from prompts, several at a time, padded at the left so that all answers begin at one place."""

    def __init__(self, model: Any, encoder: Encoder, rows: Sequence[Row], max_new: int, stops: Sequence[int]) -> None:
        self._model, self._tokenizer, self._pad = model, encoder.tokenizer, encoder.pad_id
        self.prompts = [turns_text(row.prompt) for row in rows]
        self.references = [turns_text(row.answers[0]) for row in rows]
        self._ids = [encoder.prompt_ids(row) for row in rows]
        self._config = GenerationConfig(
            max_new_tokens=max_new, do_sample=False, pad_token_id=self._pad, eos_token_id=sorted(set(stops))
        )

    def answers(self) -> list[str]:
        """One answer per prompt, special tokens left out. Draws from no source of chance."""
        made: list[str] = []
        with torch.no_grad():
            for start in range(0, len(self._ids), _BATCH):
                made.extend(self._continued(self._ids[start : start + _BATCH]))
        return made

    def _continued(self, prompts: list[list[int]]) -> list[str]:
        width = max(map(len, prompts))
        device = self._model.device
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        made = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=self._config)
        return [self._tokenizer.decode(row[width:], skip_special_tokens=True).strip() for row in made]
