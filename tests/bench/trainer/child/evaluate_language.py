# pyright: basic
"""`python -m tests.bench.trainer.child.evaluate_language METHOD MODEL HELD_OUT ADAPTER…`: a loss for each, as JSON.

Adapters are loaded by PEFT. For `sft` the loss is that of the assistant's tokens, for `dpo` the preference loss at beta
0.1 against the base model; over the same held-out rows. `-` stands for the base model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

_BETA = 0.1


def _encoded(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of the whole turn up to the end of the answer, and where the answer begins."""
    turn = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    begun = tokenizer(prompt, add_special_tokens=False).input_ids
    return begun + tokenizer(answer + tokenizer.eos_token, add_special_tokens=False).input_ids, len(begun)


def _answer_log_probabilities(model: Any, tokenizer: Any, question: str, answer: str) -> torch.Tensor:
    ids, begun = _encoded(tokenizer, question, answer)
    tokens = torch.tensor([ids])
    scores = torch.log_softmax(model(input_ids=tokens).logits[0, :-1].float(), -1)
    return scores.gather(1, tokens[0, 1:, None])[begun - 1 :, 0]


def _answers(model: Any, tokenizer: Any, rows: list[dict[str, str]], which: str) -> list[torch.Tensor]:
    return [_answer_log_probabilities(model, tokenizer, row["question"], row[which]) for row in rows]


def _preferences(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> torch.Tensor:
    """Log-probabilities [N, 2]."""
    sides = [[each.sum() for each in _answers(model, tokenizer, rows, which)] for which in ("chosen", "rejected")]
    return torch.tensor(sides).T


@torch.no_grad()
def main() -> None:
    """Print the losses."""
    method, folder, held_out, *adapters = sys.argv[1:]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = json.loads(Path(held_out).read_text(encoding="utf-8"))
    losses: list[float] = []
    reference: torch.Tensor | None = None
    for adapter in adapters:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        if method == "dpo" and reference is None:
            reference = _preferences(model, tokenizer, rows)
        if adapter != "-":
            model = PeftModel.from_pretrained(model, adapter).eval()
        if reference is not None:
            gained = _BETA * (_preferences(model, tokenizer, rows) - reference)
            losses.append(float(-torch.nn.functional.logsigmoid(gained[:, 0] - gained[:, 1]).mean()))
        else:
            losses.append(float(-torch.cat(_answers(model, tokenizer, rows, "chosen")).mean()))
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
