# pyright: basic
"""The same weights and the same rows give TRL's losses and rewards. Needs TRL (`.venv-bench`), else it is skipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.dialogues import chat
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.llm.batches import collate
from trainer.llm.losses import log_probabilities, preference_loss, token_losses
from trainer.llm.rows import Message, Row
from trainer.llm.tokens import Encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BETA = 0.3


@pytest.fixture
def trl() -> Any:
    return pytest.importorskip("trl", reason="TRL is not installed here: run `just bench-trainer`'s environment")


@pytest.fixture
def datasets(trl: Any) -> Any:
    assert trl
    return pytest.importorskip("datasets")


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 0.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "max_length": 96, "dataloader_pin_memory": False, "disable_tqdm": True,
    }  # fmt: skip


def loaded(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def logged(trainer: Any) -> dict[str, float]:
    trainer.train()
    return next(line for line in trainer.state.log_history if "loss" in line)


@pytest.mark.parametrize("packed", [False, True])
def test_sft_loss_is_trls(
    new_qwen: Path, dialogues: list[tuple[str, str]], tmp_path: Path, trl: Any, datasets: Any, *, packed: bool
) -> None:
    pairs = dialogues[:4]
    model, tokenizer = loaded(new_qwen)
    theirs = logged(
        trl.SFTTrainer(
            model, args=trl.SFTConfig(**settings(tmp_path), assistant_only_loss=True), processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list([chat(*pair) for pair in pairs]),
        )
    )["loss"]  # fmt: skip
    model, tokenizer = loaded(new_qwen)
    encoder = Encoder(tokenizer, 96, None)
    rows = [
        Row("a:1", (Message("user", question),), ((Message("assistant", answer),),), every_answer=True)
        for question, answer in pairs
    ]
    examples = [encoder.examples(row)[0] for row in rows]
    batch = collate([examples] if packed else [[example] for example in examples], encoder.pad_id)
    losses = token_losses(model.eval(), batch)
    assert losses.mean().item() == pytest.approx(theirs, abs=1e-5)


def test_dpo_loss_and_rewards_are_trls(
    new_qwen: Path, taught_qwen: Any, dialogues: list[tuple[str, str]], tmp_path: Path, trl: Any, datasets: Any
) -> None:
    """Strings, so that both sides read the same tokens; the policy is the taught model, the reference the new one."""
    rows = [
        {"prompt": f"{question}\n", "chosen": answer, "rejected": " ".join(reversed(answer.split()))}
        for question, answer in dialogues[:4]
    ]
    taught = taught_qwen.work_dir / "output"
    policy, tokenizer = loaded(taught)
    reference, _ = loaded(new_qwen)
    theirs = logged(
        trl.DPOTrainer(
            policy, ref_model=reference, args=trl.DPOConfig(**settings(tmp_path), beta=BETA),
            processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows),
        )
    )  # fmt: skip
    policy, tokenizer = loaded(taught)
    encoder = Encoder(tokenizer, 96, None)
    pairs = [encoder.examples(Row("a:1", row["prompt"], (row["chosen"], row["rejected"]))) for row in rows]
    batch = collate([[pair[0]] for pair in pairs] + [[pair[1]] for pair in pairs], encoder.pad_id)
    ours = preference_loss(
        log_probabilities(policy.eval(), batch).reshape(2, -1),
        log_probabilities(reference.eval(), batch).reshape(2, -1),
        BETA, 0.0,
    )  # fmt: skip
    assert ours.losses.mean().item() == pytest.approx(theirs["loss"], abs=1e-5)
    assert ours.chosen_rewards.mean().item() == pytest.approx(theirs["rewards/chosen"], rel=1e-5, abs=1e-5)
    assert ours.rejected_rewards.mean().item() == pytest.approx(theirs["rewards/rejected"], rel=1e-5, abs=1e-5)
    assert (ours.chosen_rewards > ours.rejected_rewards).float().mean().item() == theirs["rewards/accuracies"]
