"""What a job learned, on the command line: all pages, as a table or as JSON."""

import json
from typing import Any

from tests.unit.cli.conftest import Run, Server, a_problem, as_json

JOB = "01a20118-37ae-7469-8b47-45a866170181"
METRICS = f"GET /api/training/metrics/{JOB}"
PREDICTIONS = f"GET /api/training/predictions/{JOB}"


def a_metric(step: int, **others: Any) -> dict[str, Any]:
    return {"job_id": JOB, "step": step, "total_steps": 9, "epoch": 0, "loss": 0.5, "learning_rate": 1e-4, **others}


def a_page(kind: str, cursor: int, *records: dict[str, Any]) -> Any:
    return as_json({"job_id": JOB, kind: list(records), "cursor": cursor})


def test_metrics_are_read_page_by_page_and_printed(server: Server, run: Run) -> None:
    gpu = {"gpu_memory_mb": 812, "gpu_utilisation_percent": 97, "gpu_temperature_c": 71, "samples_per_s": 4.25}
    server.on(
        METRICS, a_page("metrics", 5, a_metric(1)), a_page("metrics", 8, a_metric(2, **gpu)), a_page("metrics", 8)
    )
    ended = run("metrics", JOB)
    assert ended.code == 0
    assert [asked.query["after"] for asked in server.asked] == ["0", "5", "8"]
    assert "1/9" in ended.out
    assert "812 MiB" in ended.out
    assert "97 %, 71 °C" in ended.out
    assert "4.25" in ended.out


def test_the_last_metrics_as_json(server: Server, run: Run) -> None:
    server.on(METRICS, a_page("metrics", 3, *(a_metric(step) for step in (1, 2, 3))), a_page("metrics", 3))
    told = json.loads(run("metrics", JOB, "-n", "2", "--json").out)
    assert [record["step"] for record in told["metrics"]] == [2, 3]


def test_predictions_show_prompt_answer_and_scores_in_one_line(server: Server, run: Run) -> None:
    record = {
        "step": 10,
        "sample_id": "sample_1",
        "bleu_score": 0.45,
        "rouge_score": None,
        "prompt": "What\nis AI?",
        "generated": "x" * 100,
    }
    server.on(PREDICTIONS, a_page("predictions", 1, record), a_page("predictions", 1))
    ended = run("predictions", JOB)
    assert ended.code == 0
    assert "What is AI?" in ended.out
    assert "0.45" in ended.out
    assert "x" * 59 + "…" in ended.out
    assert "x" * 61 not in ended.out


def test_an_unknown_job_is_an_error(server: Server, run: Run) -> None:
    server.on(METRICS, a_problem("job_not_found", "there is no such job", 404))
    ended = run("metrics", JOB)
    assert ended.code == 1
    assert "no such job" in ended.err
