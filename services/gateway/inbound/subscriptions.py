"""Which events feed which read model."""

from services.gateway.projections.jobs import project_jobs
from shared.contracts.subjects import GATEWAY_JOBS_VIEW
from shared.messaging.consumer import Subscription
from shared.projection import Projection

SUBSCRIPTIONS = (Subscription(durable=GATEWAY_JOBS_VIEW, project=project_jobs),)
PROJECTIONS = (
    Projection(name="jobs_view", tables=("jobs_view", "attempts"), durable=GATEWAY_JOBS_VIEW, project=project_jobs),
)
