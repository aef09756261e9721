"""The documented metrics: what sums over jobs add up to, and how a job moves between them."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from services.gateway.domain.job_metrics import first_day, metrics_response, prometheus_text
from services.gateway.domain.job_sums import JobSum, SumKey, add_change
from services.gateway.domain.view_job import JobFacts
from services.gateway.domain.view_money import MoneyView
from services.gateway.domain.views import JobView

T0 = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
DAY = T0.date()
SUMS = {
    SumKey(DAY, "local", "completed", True): JobSum(3, 6_000_000, 3, 90_000),
    SumKey(DAY, "local", "failed", False): JobSum(1, 500_000, 1, 10_000),
    SumKey(DAY - timedelta(days=1), "far", "queued", True): JobSum(2),
}


def a_view(facts: JobFacts, money: MoneyView | None = None) -> JobView:
    return JobView(job_id=UUID(int=1), job=facts, money=money or MoneyView())


def test_metrics_add_up_costs_counts_and_times() -> None:
    said = metrics_response(SUMS, 30)
    assert (said.job_count, said.total_cost, said.avg_job_duration_seconds) == (6, 6.5, 25.0)
    assert said.jobs_by_status == {"completed": 3, "failed": 1, "queued": 2}
    assert [(day.date, day.cost) for day in said.cost_by_day] == [("2026-11-21", 0.0), ("2026-11-22", 6.5)]
    assert (said.success_rate, said.period_days) == (0.75, 30)
    assert said.by_provider["far"].success_rate is None
    assert said.by_provider["local"].job_count == 4


def test_metrics_of_no_jobs_are_zero() -> None:
    said = metrics_response({}, 7)
    assert (said.job_count, said.total_cost, said.avg_job_duration_seconds, said.success_rate) == (0, 0.0, None, None)


def test_prometheus_text_has_the_documented_names() -> None:
    text = prometheus_text(SUMS, 12.5)
    assert "simpletuner_uptime_seconds 12.5\n" in text
    assert "# TYPE simpletuner_jobs_total gauge\nsimpletuner_jobs_total 6\n" in text
    assert 'simpletuner_jobs_by_status{status="queued"} 2\n' in text
    assert "simpletuner_jobs_active 2\n" in text
    assert "simpletuner_job_duration_seconds_avg 25.0\n" in text
    assert text.endswith("simpletuner_cost_usd_total 6.5\n")


def test_period_ends_today() -> None:
    assert first_day(date(2026, 11, 22), 1) == date(2026, 11, 22)
    assert first_day(date(2026, 11, 22), 30) == date(2026, 10, 24)


def test_job_that_moves_on_leaves_nothing_where_it_was() -> None:
    began = JobFacts(phase="queued", provider="local", submitted_at=T0)
    ended = JobFacts(
        phase="completed",
        provider="local",
        submitted_at=T0,
        started_at=T0,
        ended_at=T0 + timedelta(seconds=2, microseconds=1999),
    )
    sums: dict[SumKey, JobSum] = {}
    add_change(sums, JobView(job_id=UUID(int=1)), a_view(began))
    add_change(sums, a_view(began), a_view(ended, MoneyView(metered_micro_usd={"a": 3, "b": 4})))
    assert sums == {
        SumKey(DAY, "local", "queued", True): JobSum(),
        SumKey(DAY, "local", "completed", True): JobSum(1, 7, 1, 2001),
    }


def test_captured_money_counts_instead_of_what_was_metered() -> None:
    sums: dict[SumKey, JobSum] = {}
    money = MoneyView(metered_micro_usd={"a": 3}, captured_micro_usd=2)
    add_change(sums, JobView(job_id=UUID(int=1)), a_view(JobFacts(submitted_at=T0, provider="local"), money))
    assert next(iter(sums.values())).cost_micro_usd == 2
