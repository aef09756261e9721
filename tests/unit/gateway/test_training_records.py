"""Report lines as the documented records: brief names, no number that was not measured."""

from typing import Any

from services.gateway.domain.training_records import metrics_record, prediction_record

JOB, ATTEMPT = "01a20118-37ae-7469-8b47-45a866170181", "01a20118-4444-7469-8b47-45a866170182"


def a_line(type_: str, **data: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "job": JOB,
        "attempt": ATTEMPT,
        "seq": 7,
        "ts": "2026-11-22T01:02:03Z",
        "type": type_,
        "data": data,
    }


def test_metrics_record_has_the_documented_members_and_all_others() -> None:
    line = a_line(
        "metrics", step=100, total_steps=200, epoch=1, loss=1.234, eval_loss=1.456, lr=5e-5, grad_norm=0.5, step_s=0.1,
        gpu_memory_bytes=12345 * 1024 * 1024, gpu_temperature_c=70,
    )  # fmt: skip
    assert metrics_record(line) == {
        "job_id": JOB,
        "step": 100,
        "total_steps": 200,
        "epoch": 1,
        "loss": 1.234,
        "eval_loss": 1.456,
        "learning_rate": 5e-5,
        "grad_norm": 0.5,
        "step_s": 0.1,
        "gpu_memory_bytes": 12345 * 1024 * 1024,
        "gpu_memory_mb": 12345,
        "gpu_temperature_c": 70,
        "ts": "2026-11-22T01:02:03Z",
        "attempt": ATTEMPT,
        "seq": 7,
    }


def test_metrics_record_of_a_cpu_has_no_gpu_memory_and_no_invented_number() -> None:
    record = metrics_record(a_line("metrics", step=1, loss=None, memory_bytes=5))
    assert (record["gpu_memory_mb"], record["loss"], record["eval_loss"], record["learning_rate"]) == (None,) * 4
    assert record["memory_bytes"] == 5


def test_metrics_record_of_a_line_without_data_is_empty_and_not_an_error() -> None:
    assert metrics_record({"job": JOB, "data": 3})["step"] is None


def test_prediction_record_has_the_documented_members_and_the_reference() -> None:
    told = {
        "epoch": 1,
        "step": 100,
        "sample_id": "sample_1",
        "prompt": "What is AI?",
        "generated": "AI is a field of computer science...",
        "bleu_score": 0.45,
        "rouge_score": 0.52,
    }
    record = prediction_record(a_line("prediction", **told, reference="A field.", other=1))
    assert {name: record[name] for name in ("job_id", *told)} == {"job_id": JOB, **told}
    assert record["reference"] == "A field."
    assert "other" not in record
