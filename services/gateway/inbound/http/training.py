"""`/api/training`: what a job reported about its learning, in the record shapes of the training service's clients."""

from typing import Annotated, Any

from litestar import Router, get
from litestar.params import FromPath, QueryParameter

from services.gateway.domain.training_records import metrics_record, prediction_record
from services.gateway.inbound.http.jobs import job_id_of
from services.gateway.inbound.http.parts import Parts

After = Annotated[int, QueryParameter(ge=0)]
PageLimit = Annotated[int, QueryParameter(ge=1, le=10_000)]


@get("/metrics/{job_id:str}")
async def training_metrics(
    job_id: FromPath[str], parts: Parts, after: After = 0, limit: PageLimit = 1000
) -> dict[str, Any]:
    """The numbers a job's trainer reported, oldest first; `cursor` is the next page's `after`."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    page = await parts.reads.reports(view.job_id, after=after, types=["metrics"], limit=limit)
    records = [metrics_record(line) for line in page.lines]
    return {"job_id": str(view.job_id), "metrics": records, "cursor": page.cursor}


@get("/predictions/{job_id:str}")
async def training_predictions(
    job_id: FromPath[str], parts: Parts, after: After = 0, limit: PageLimit = 1000
) -> dict[str, Any]:
    """What the model answered to its sample prompts, oldest first; `cursor` is the next page's `after`."""
    view = await parts.reads.view(job_id_of(job_id), with_deleted=True)
    page = await parts.reads.reports(view.job_id, after=after, types=["prediction"], limit=limit)
    records = [prediction_record(line) for line in page.lines]
    return {"job_id": str(view.job_id), "predictions": records, "cursor": page.cursor}


ROUTER = Router("/api/training", route_handlers=[training_metrics, training_predictions], tags=["Training"])
