# pyright: basic
"""`python -m tests.bench.trainer.child.trl_trainer SETTINGS.json`: TRL's SFTTrainer or DPOTrainer, timed."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports] -- in .venv-bench
import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import (  # pyright: ignore[reportMissingImports] -- in .venv-bench
    DPOConfig,
    DPOTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.bench.trainer.child.clock import clock_from_environment


def main() -> None:
    """Train as the settings say and save the adapter."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    clock = clock_from_environment()
    clock.start()
    clock.imported()
    cpu = settings["device"] == "cpu"
    common: dict[str, Any] = {
        "output_dir": settings["output"], "per_device_train_batch_size": settings["batch"],
        "max_steps": settings["steps"], "learning_rate": settings["rate"], "lr_scheduler_type": "constant",
        "max_length": settings["max_length"], "seed": settings["seed"], "use_cpu": cpu, "bf16": False,
        "gradient_checkpointing": False, "dataloader_pin_memory": not cpu, "disable_tqdm": True,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "weight_decay": 0.0, "max_grad_norm": 1.0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
    )
    parts: dict[str, Any] = {
        "train_dataset": datasets.Dataset.from_json(settings["data"]),
        "processing_class": AutoTokenizer.from_pretrained(settings["model"], local_files_only=True),
        "peft_config": LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    }
    if settings["method"] == "sft":
        trainer = SFTTrainer(model, args=SFTConfig(**common, assistant_only_loss=True), **parts)
    else:
        config = DPOConfig(**common, beta=settings["beta"], precompute_ref_log_probs=settings["precompute"])
        trainer = DPOTrainer(model, args=config, **parts)
    trainer.train()
    trainer.save_model(settings["output"])


if __name__ == "__main__":
    main()
