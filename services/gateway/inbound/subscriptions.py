"""Which events feed which read model."""

from services.gateway.projections.jobs import project_jobs, project_page
from shared.contracts.subjects import GATEWAY_JOBS_VIEW
from shared.messaging.consumer import Subscription
from shared.projection import Projection

SUBSCRIPTIONS = (Subscription(durable=GATEWAY_JOBS_VIEW, project=project_jobs, project_page=project_page),)
PROJECTIONS = (
    Projection(
        name="jobs_view",
        tables=("jobs_view", "attempts", "job_sums", "models"),
        durable=GATEWAY_JOBS_VIEW,
        project=project_jobs,
        project_page=project_page,
    ),
)
