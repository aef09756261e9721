"""SFT and DPO of a small Qwen2 with LoRA: our trainer beside TRL's."""

import json
from pathlib import Path
from typing import Any

import msgspec

from shared.contracts.run import RunSpec
from tests.bench.trainer.comparison import Comparison, Side
from tests.bench.trainer.sides import Measured, Place

_NEVER = 1_000_000
_BATCH = 8
_RATE = 1e-2
_RANK = 16
_ALPHA = 32
_MAX_LENGTH = 128
_BETA = 0.1


def comparisons(home: Path) -> list[Comparison]:
    """SFT, and DPO twice: as TRL does it unasked, and with the reference computed ahead as ours always does."""
    model = home / "models" / "qwen2"
    sft = Comparison(
        name="sft", title="SFT of Qwen2 with LoRA", target=2.0, peer_is="TRL SFTTrainer",
        ours=_ours("sft", model), peer=_peer("sft", model), loss_is="loss on held-out answers",
        judge=("evaluate_language", "sft", str(model), str(home / "held-out-text.json")),
        note="ours in batches of about one length",
    )  # fmt: skip
    dpo = [
        Comparison(
            name=name, title=title, target=1.5, peer_is="TRL DPOTrainer", ours=_ours("dpo", model),
            peer=_peer("dpo", model, precompute=precompute), loss_is="loss on held-out preferences", note=note,
            judge=("evaluate_language", "dpo", str(model), str(home / "held-out-text.json")),
        )
        for name, title, precompute, note in (
            ("dpo", "DPO of Qwen2 with LoRA", False, "ours computes the reference once, before the first step"),
            ("dpo-cached", "the same, both with the reference ahead", True, "TRL with precompute_ref_log_probs"),
        )
    ]  # fmt: skip
    return [sft, *dpo]


def _data(home: Path, method: str) -> Path:
    return home / f"{method}.jsonl"


def _ours(method: str, model: Path) -> Side:
    def train(place: Place, seed: int, folder: Path) -> tuple[Measured, Path]:
        training: dict[str, Any] = {
            "method": method, "max_steps": place.steps, "learning_rate": _RATE, "lr_scheduler": "constant",
            "batch_size": _BATCH, "max_seq_length": _MAX_LENGTH, "lora_r": _RANK, "lora_alpha": _ALPHA,
            "gradient_checkpointing": False, "bf16": False, "save_steps": _NEVER, "eval_steps": _NEVER, "seed": seed,
            **({"beta": _BETA} if method == "dpo" else {}),
        }  # fmt: skip
        run = RunSpec(
            job_id="bench", attempt_id="bench", attempt_number=1, gateway_url=None,
            config={"model": str(model), "dataset": str(_data(place.home, method)), "training": training},
            dataloader=[], output_prefix="bench",
        )  # fmt: skip
        spec = folder / "spec.json"
        spec.write_bytes(msgspec.json.encode(run))
        measured = place.timed(
            folder / "clock.json", "ours", "trainer.llm.session", str(spec), str(folder), place.device
        )
        return measured, folder / "output"

    return train


def _peer(method: str, model: Path, *, precompute: bool = False) -> Side:
    def train(place: Place, seed: int, folder: Path) -> tuple[Measured, Path]:
        settings = {
            "method": method, "model": str(model), "data": str(_data(place.home, method)), "batch": _BATCH,
            "steps": place.steps, "rate": _RATE, "rank": _RANK, "alpha": _ALPHA, "max_length": _MAX_LENGTH,
            "beta": _BETA, "precompute": precompute, "seed": seed, "device": place.device,
            "output": str(folder / "output"),
        }  # fmt: skip
        path = folder / "settings.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        return place.timed(folder / "clock.json", "trl_trainer", str(path)), folder / "output"

    return train
