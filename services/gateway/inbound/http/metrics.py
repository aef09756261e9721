"""`/api/cloud/metrics`, and the same at `/api/metrics`: the documented summary of jobs, as JSON and for Prometheus."""

from typing import Annotated

from litestar import Response, Router, get
from litestar.params import QueryParameter

from services.gateway.domain.job_metrics import (
    PROMETHEUS_DAYS,
    PROMETHEUS_TYPE,
    MetricsResponse,
    metrics_response,
    prometheus_text,
)
from services.gateway.inbound.http.parts import Parts

Days = Annotated[int, QueryParameter(ge=1, le=365)]


@get("/")
async def metrics(parts: Parts, days: Days = 30) -> MetricsResponse:
    """How many jobs there were, how they ended, how long they took and what they cost."""
    return metrics_response(await parts.reads.sums(days), days)


@get("/prometheus", media_type=PROMETHEUS_TYPE)
async def prometheus(parts: Parts) -> Response[str]:
    """The same over 30 days as `simpletuner_*` gauges; always on."""
    text = prometheus_text(await parts.reads.sums(PROMETHEUS_DAYS), parts.reads.uptime_s())
    return Response(text, media_type=PROMETHEUS_TYPE)


ROUTERS = [
    Router(path, route_handlers=[metrics, prometheus], tags=["Metrics"])
    for path in ("/api/cloud/metrics", "/api/metrics")
]
