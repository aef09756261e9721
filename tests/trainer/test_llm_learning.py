# pyright: basic
"""What a language model has learned, judged on real dialogues with other programs' loaders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import Attempt
from llm_runs import LlmAttempts, evaluations, step_losses, stored_config
from peft import PeftModel
from safetensors import safe_open
from tiny.dialogues import chat, reversed_preference, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.contracts.run import ExitCode
from trainer.llm.scores import corpus_figures, score

PREDICTION_FIELDS = ["epoch", "step", "sample_id", "prompt", "generated", "reference", "bleu_score", "rouge_score"]


@pytest.fixture(scope="module")
def known(dialogues: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sixteen short answers to questions that are asked once."""
    once = {question: answer for question, answer in dialogues}  # noqa: C416 -- the last answer to each question
    return [(question, answer) for question, answer in once.items() if len(answer) < 40][:16]


@pytest.fixture(scope="module")
def learned(
    tmp_path_factory: pytest.TempPathFactory, taught_qwen: Attempt, known: list[tuple[str, str]], dialogue_file: Path
) -> Attempt:
    """A LoRA that learned sixteen dialogues by heart, asked for them at the start, in the middle and at the end."""
    folder = tmp_path_factory.mktemp("learned")
    rows = write_jsonl(folder / "rows" / "known.jsonl", [chat(*pair) for pair in known])
    start = LlmAttempts(folder, taught_qwen.work_dir / "output", dialogue_file)
    attempt = start(
        "learned", dataset={"path": str(rows), "eval_path": str(rows)}, max_steps=80, lora_r=32, lora_alpha=64,
        eval_steps=40, save_steps=1000, merge_and_save=True,
        top={"predictions": {"enabled": True, "sample_count": 16, "max_new_tokens": 24}},
    )  # fmt: skip
    assert attempt.run() == ExitCode.DONE
    return attempt


def answer_of(model: Any, tokenizer: Any, question: str) -> str:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(made[0][ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_full_training_lowers_the_loss_and_leaves_a_model_that_transformers_loads(taught_qwen: Attempt) -> None:
    losses = list(step_losses(taught_qwen).values())
    assert sum(losses[-20:]) < 0.65 * sum(losses[:5]) * 4
    output = taught_qwen.work_dir / "output"
    assert {path.name for path in output.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    model = AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(output, local_files_only=True).chat_template


def test_predictions_begin_with_the_base_and_end_near_the_data(learned: Attempt) -> None:
    looks = evaluations(learned)
    assert sorted(looks) == [0, 40, 80]
    assert looks[80]["eval_loss"] < 0.5 * looks[0]["eval_loss"]
    assert looks[0]["eval_bleu"] < 0.2
    assert looks[80]["eval_bleu"] > looks[0]["eval_bleu"] + 0.4
    assert looks[80]["eval_rouge_l"] > looks[0]["eval_rouge_l"] + 0.4
    assert looks[80]["eval_exact_match"] > looks[0]["eval_exact_match"]


def test_each_prediction_is_the_documented_record(learned: Attempt, known: list[tuple[str, str]]) -> None:
    lines = learned.data("prediction")
    assert [line["step"] for line in lines] == [0] * 16 + [40] * 16 + [80] * 16
    assert all(list(line) == PREDICTION_FIELDS for line in lines)
    assert [line["sample_id"] for line in lines[:16]] == [f"sample_{number}" for number in range(1, 17)]
    assert [(line["prompt"], line["reference"]) for line in lines[:16]] == known
    assert all(0 <= line[name] <= 1 for line in lines for name in ("bleu_score", "rouge_score"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the older name
def test_peft_loads_the_adapter_and_says_what_was_predicted(learned: Attempt, taught_qwen: Attempt) -> None:
    base, output = taught_qwen.work_dir / "output", learned.work_dir / "output"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(output, local_files_only=True)
    adapted = PeftModel.from_pretrained(model, str(output)).eval()
    for line in learned.data("prediction")[-16:-12]:
        assert answer_of(adapted, tokenizer, line["prompt"]) == line["generated"]
    assert stored_config(output)["base_model_name_or_path"] == str(base)
    assert (stored_config(output)["r"], stored_config(output)["lora_alpha"]) == (32, 64)
    with safe_open(output / "adapter_model.safetensors", framework="pt") as file:
        facts = file.metadata()
    assert facts["tunewright.job_id"] == "job-1"
    assert facts["ss_network_dim"] == "32"


def test_the_merged_model_needs_no_adapter(learned: Attempt) -> None:
    merged = learned.work_dir / "output" / "merged"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    line = learned.data("prediction")[-1]
    assert answer_of(model, tokenizer, line["prompt"]) == line["generated"]
    manifest = json.loads((learned.work_dir / "output" / "manifest.json").read_text())
    assert {"merged/model.safetensors", "tokenizer.json", "adapter_config.json"} <= set(manifest["files"])


def test_dpo_learns_a_preference_and_keeps_reference_probabilities(
    start_llm: LlmAttempts, dialogues: list[tuple[str, str]], tmp_path: Path
) -> None:
    pairs = [pair for pair in dialogues if len(pair[1].split()) > 3][:200]
    rows = write_jsonl(tmp_path / "pairs" / "pairs.jsonl", [reversed_preference(*pair) for pair in pairs])
    settings: dict[str, Any] = {
        "method": "dpo", "max_steps": 60, "learning_rate": 3e-3, "lora_r": 16, "lora_alpha": 32, "eval_steps": 60,
        "dataset": {"path": str(rows), "eval_split": 0.15}, "save_steps": 1000,
    }  # fmt: skip
    attempt = start_llm("dpo", **settings)
    assert attempt.run() == ExitCode.DONE
    looks = evaluations(attempt)
    assert looks[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert looks[60]["eval_reward_accuracy"] >= 0.9
    steps = [line for line in attempt.data("metrics") if "reward_margin" in line]
    assert sum(line["reward_accuracy"] for line in steps[-10:]) / 10 >= 0.9
    assert steps[-1]["reward_margin"] > steps[0]["reward_margin"]
    cached = sorted((tmp_path / "cache").iterdir())
    times = [path.stat().st_mtime_ns for path in cached]
    again = start_llm("again", **{**settings, "max_steps": 2})
    assert again.run() == ExitCode.DONE
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").iterdir())] == times
    assert step_losses(again)[1] == step_losses(attempt)[1]


def test_a_perfect_answer_scores_one_and_a_strange_one_zero() -> None:
    perfect = score("The sky is blue today.", "The sky is blue today.")
    assert (perfect.bleu, perfect.rouge_l, perfect.exact) == (1.0, 1.0, True)
    strange = score("nothing alike", "The sky is blue today.")
    assert (strange.rouge_l, strange.exact) == (0.0, False)
    assert strange.bleu < 0.05
    assert score("天気がいい", "天気がいい").rouge_l == 1.0
    figures = corpus_figures(["a b c d e", "no"], ["a b c d e", "yes"])
    assert figures["eval_exact_match"] == 0.5
    assert 0 < figures["eval_bleu"] < 1
