"""A trainer's report lines as records: one row for each measurement or answer, with the documented names."""

from typing import Any, cast

MIB = 1024 * 1024
_RENAMED = {"lr": "learning_rate"}
_PREDICTION = ("epoch", "step", "sample_id", "prompt", "generated", "reference", "bleu_score", "rouge_score")


def metrics_record(line: dict[str, Any]) -> dict[str, Any]:
    """`job_id, step, epoch, loss, eval_loss, learning_rate, gpu_memory_mb`, and whatever else was measured.

    `gpu_memory_mb` counts MiB that training holds on the GPU now; None where there is no GPU.
    """
    data = _data(line)
    held_bytes = data.get("gpu_memory_bytes")
    others = {_RENAMED.get(name, name): value for name, value in data.items()}
    return {
        "job_id": line.get("job"),
        "step": None,
        "epoch": None,
        "loss": None,
        "eval_loss": None,
        "learning_rate": None,
        **others,
        "gpu_memory_mb": round(held_bytes / MIB) if isinstance(held_bytes, int | float) else None,
        **_origin(line),
    }


def prediction_record(line: dict[str, Any]) -> dict[str, Any]:
    """`job_id, epoch, step, sample_id, prompt, generated, bleu_score, rouge_score`, and the reference it is held to."""
    data = _data(line)
    return {"job_id": line.get("job"), **{name: data.get(name) for name in _PREDICTION}, **_origin(line)}


def _origin(line: dict[str, Any]) -> dict[str, Any]:
    return {"ts": line.get("ts"), "attempt": line.get("attempt"), "seq": line.get("seq")}


def _data(line: dict[str, Any]) -> dict[str, Any]:
    data = line.get("data")
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
