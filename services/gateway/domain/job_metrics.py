"""What the documented metrics endpoints say of jobs, from sums alone: no job is looked at."""

from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import msgspec

from services.gateway.domain.job_body import ACTIVE_STATUSES, MICRO
from services.gateway.domain.job_sums import JobSum, Sums

MILLI = 1000
PROMETHEUS_DAYS = 30
PROMETHEUS_TYPE = "text/plain; version=0.0.4"


class DayCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs submitted on a day (UTC) have cost."""

    date: str
    cost: float


class ProviderMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The same figures for one provider."""

    job_count: int
    total_cost: float
    avg_job_duration_seconds: float | None
    success_rate: float | None
    jobs_by_status: dict[str, int]


class MetricsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs submitted in the last `period_days` days, today included; deleted ones too, because they cost as well.

    Costs are US dollars as booked: a job counts once its machine time is. The average duration is over jobs that have
    started and ended. `success_rate` is completed / (completed + failed). Balances belong to providers we do not ask.
    """

    credit_balance: float | None = None
    estimated_jobs_remaining: int | None = None
    total_cost: float
    job_count: int
    avg_job_duration_seconds: float | None
    jobs_by_status: dict[str, int]
    cost_by_day: list[DayCost]
    period_days: int
    success_rate: float | None
    by_provider: dict[str, ProviderMetrics]


def first_day(today: date, days: int) -> date:
    """The first of so many days that end today."""
    return today - timedelta(days=days - 1)


def metrics_response(sums: Sums, days: int) -> MetricsResponse:
    """The documented answer."""
    total, statuses = _total(sums), _statuses(sums)
    of_day: Counter[str] = Counter()
    for key, one in sums.items():
        of_day[key.day.isoformat()] += one.cost_micro_usd
    providers = sorted({key.provider for key in sums})
    return MetricsResponse(
        total_cost=total.cost_micro_usd / MICRO,
        job_count=total.jobs,
        avg_job_duration_seconds=_average_s(total),
        jobs_by_status=statuses,
        cost_by_day=[DayCost(date=day, cost=cost / MICRO) for day, cost in sorted(of_day.items())],
        period_days=days,
        success_rate=_success_rate(statuses),
        by_provider={provider: _provider(sums, provider) for provider in providers},
    )


def _provider(sums: Sums, provider: str) -> ProviderMetrics:
    own = {key: one for key, one in sums.items() if key.provider == provider}
    total, statuses = _total(own), _statuses(own)
    return ProviderMetrics(
        job_count=total.jobs,
        total_cost=total.cost_micro_usd / MICRO,
        avg_job_duration_seconds=_average_s(total),
        success_rate=_success_rate(statuses),
        jobs_by_status=statuses,
    )


def prometheus_text(sums: Sums, uptime_s: float) -> str:
    """The documented gauges over PROMETHEUS_DAYS days, in the text format 0.0.4."""
    total, statuses = _total(sums), _statuses(sums)
    active = sum(statuses.get(status, 0) for status in ACTIVE_STATUSES)
    gauges: list[tuple[str, str, Mapping[str, Any]]] = [
        ("uptime_seconds", "Seconds since this gateway started.", {"": round(uptime_s, 3)}),
        ("jobs_total", "Jobs submitted in the last 30 days.", {"": total.jobs}),
        (
            "jobs_by_status",
            "The same by status.",
            {f'{{status="{status}"}}': count for status, count in statuses.items()},
        ),
        ("jobs_active", "Those that have not ended.", {"": active}),
        ("job_duration_seconds_avg", "From start to end, of those that have ended.", {"": _average_s(total) or 0.0}),
        ("cost_usd_total", "What they have cost as booked.", {"": total.cost_micro_usd / MICRO}),
    ]
    lines: list[str] = []
    for name, said, values in gauges:
        lines += [f"# HELP simpletuner_{name} {said}", f"# TYPE simpletuner_{name} gauge"]
        lines += [f"simpletuner_{name}{labels} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _total(sums: Sums) -> JobSum:
    total = JobSum()
    for one in sums.values():
        total = total.plus(one, 1)
    return total


def _statuses(sums: Sums) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key, one in sums.items():
        counts[key.status] += one.jobs
    return dict(sorted(counts.items()))


def _average_s(total: JobSum) -> float | None:
    return total.duration_ms / total.timed_jobs / MILLI if total.timed_jobs else None


def _success_rate(statuses: Mapping[str, int]) -> float | None:
    completed, failed = statuses.get("completed", 0), statuses.get("failed", 0)
    return completed / (completed + failed) if completed + failed else None
