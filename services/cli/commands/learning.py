"""metrics and predictions: what a job's trainer measured, and what the model answered as it learned."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli.exit_codes import DONE
from services.cli.options import Session

_PAGE = 1000
_METRICS = ("STEP", "EPOCH", "LOSS", "EVAL LOSS", "RATE", "GRAD NORM", "S/STEP", "SAMPLES/S", "GPU MEMORY", "GPU")
_PREDICTIONS = ("STEP", "SAMPLE", "BLEU", "ROUGE", "PROMPT", "GENERATED")
_TEXT_WIDTH = 60
Limit = Annotated[int | None, Parameter(name=["--limit", "-n"])]


def metrics(job: str, *, limit: Limit = None, session: Session) -> int:
    """Print the numbers that a job's trainer reported, oldest first.

    :param job: id of the job, or the beginning of it.
    :param limit: only the last so many.
    """
    return _show(session, job, "metrics", limit, _METRICS, _metrics_row)


def predictions(job: str, *, limit: Limit = None, session: Session) -> int:
    """Print what the model answered to its sample prompts as it learned, with BLEU and ROUGE.

    :param job: id of the job, or the beginning of it.
    :param limit: only the last so many.
    """
    return _show(session, job, "predictions", limit, _PREDICTIONS, _prediction_row)


def register(app: App) -> None:
    """Adds these commands."""
    app.command(metrics)
    app.command(predictions)


def _show(session: Session, job: str, kind: str, limit: int | None, columns: Sequence[str], row: Any) -> int:
    job_id = session.job_id(job)
    records = list(_records(session, job_id, kind))
    shown = records if limit is None else records[max(0, len(records) - limit) :]
    if session.terminal.as_json:
        session.terminal.json({"job_id": job_id, kind: shown})
    else:
        session.terminal.rows(columns, [row(record) for record in shown])
    return DONE


def _records(session: Session, job_id: str, kind: str) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = session.gateway.get(f"/api/training/{kind}/{job_id}", after=after, limit=_PAGE)
        yield from page[kind]
        if not page[kind]:  # a page may hold fewer than were asked for: it is bounded in bytes too
            return
        after = page["cursor"]


def _metrics_row(record: dict[str, Any]) -> Sequence[str]:
    memory_mb, busy = record.get("gpu_memory_mb"), record.get("gpu_utilisation_percent")
    return (
        f"{_text(record.get('step'))}/{_text(record.get('total_steps'))}",
        _text(record.get("epoch")),
        _number(record.get("loss")),
        _number(record.get("eval_loss")),
        _number(record.get("learning_rate")),
        _number(record.get("grad_norm")),
        _number(record.get("step_s")),
        _number(record.get("samples_per_s")),
        "" if memory_mb is None else f"{memory_mb} MiB",
        "" if busy is None else f"{busy:g} %, {_text(record.get('gpu_temperature_c'))} °C",
    )


def _prediction_row(record: dict[str, Any]) -> Sequence[str]:
    return (
        _text(record.get("step")),
        _text(record.get("sample_id")),
        _number(record.get("bleu_score")),
        _number(record.get("rouge_score")),
        _short(record.get("prompt")),
        _short(record.get("generated")),
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(value: object) -> str:
    flat = " ".join(_text(value).split())
    return flat if len(flat) <= _TEXT_WIDTH else flat[: _TEXT_WIDTH - 1] + "…"
