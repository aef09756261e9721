# pyright: basic
"""`python -m trainer generate`: what a language model answers with and without a finished LoRA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.entry.adapter_weight import scale_adapter
from trainer.entry.lines import say
from trainer.failures import AttemptFailed
from trainer.families.libraries import quieten_libraries
from trainer.train.precision import choose_precision

_ADVICE = (
    "Give the base as a folder on this machine, or as a hub id that it can download (set HF_TOKEN for gated models, "
    "and unset HF_HUB_OFFLINE)."
)


@dataclass(frozen=True)
class Question:
    """What to ask, and of whom. `temperature` 0 takes the likeliest token every time; lengths are tokens."""

    base: str
    prompt: str
    adapter: Path | None = None
    weight: float = 1.0
    with_lora: bool = True
    without_lora: bool = False
    system: str | None = None
    raw: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    count: int = 1
    revision: str | None = None
    mixed_precision: str = "bf16"
    device: str = "auto"


def generate(question: Question) -> None:
    """Says a `text` line for each answer, those of the base first.

    The prompt goes through the chat template if there is one, unless `raw`: then the model goes on where it ends.

    Raises:
        AttemptFailed: unreachable when there is no base, bad_data when the LoRA is not for it.
    """
    quieten_libraries()
    precision = choose_precision(question.device, question.mixed_precision)
    if precision.device.type == "cpu":
        torch.set_num_threads(1)
    say("stage", text=f"loading {question.base}")
    model, tokenizer = _loaded(question, precision.dtype)
    model = model.to(precision.device).eval()
    tokens = _tokens(question, tokenizer).to(precision.device)
    if question.without_lora:
        _answer(model, tokenizer, tokens, question, with_lora=False)
    if question.with_lora:
        _answer(_adapted(model, question), tokenizer, tokens, question, with_lora=True)


def _loaded(question: Question, dtype: torch.dtype) -> tuple[Any, Any]:
    """Base and tokenizer; the tokenizer that was stored with the adapter wins, for it has the chat template used."""
    source = Path(question.base).expanduser()
    if not source.is_dir() and (source.is_absolute() or question.base.startswith(".")):
        raise AttemptFailed("unreachable", f"there is no folder {question.base} on this machine", _ADVICE)
    name = str(source) if source.is_dir() else question.base
    beside = question.adapter is not None and (question.adapter / "tokenizer_config.json").is_file()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(question.adapter) if beside else name, revision=None if beside else question.revision
        )
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=question.revision)
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AttemptFailed("unreachable", f"{question.base} cannot be loaded: {reason}", _ADVICE) from error
    return model, tokenizer


def _adapted(model: Any, question: Question) -> Any:
    if question.adapter is None:
        raise AttemptFailed("bad_config", "there is no LoRA", "Name its folder with --adapter.")
    try:
        adapted = PeftModel.from_pretrained(model, question.adapter).eval()
    except (OSError, ValueError, RuntimeError) as error:
        message = f"the adapter does not fit {question.base}: {str(error).splitlines()[0]}"
        advice = "Is this the base that it was trained on? --base names another."
        raise AttemptFailed("bad_data", message, advice) from error
    scale_adapter(adapted, question.weight)
    return adapted


def _tokens(question: Question, tokenizer: Any) -> torch.Tensor:
    """The prompt as token ids [1, length]."""
    if question.raw or not getattr(tokenizer, "chat_template", None):
        if question.system:
            advice = "Leave --system out, or write it into the prompt."
            raise AttemptFailed("bad_config", "this model has no chat template, so no system message", advice)
        return tokenizer(question.prompt, return_tensors="pt").input_ids
    system = [{"role": "system", "content": question.system}] if question.system else []
    messages = [*system, {"role": "user", "content": question.prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids  # the template has written them


def _answer(model: Any, tokenizer: Any, tokens: torch.Tensor, question: Question, *, with_lora: bool) -> None:
    choice = {"do_sample": True, "temperature": question.temperature} if question.temperature else {"do_sample": False}
    for index in range(question.count):
        torch.manual_seed(question.seed + index)
        with torch.no_grad():
            made = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=question.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **choice,
            )
        new = made[0, tokens.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        say("text", text=text, with_lora=with_lora, seed=question.seed + index, tokens=len(new))
