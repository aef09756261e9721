"""`/api/training/deploy/<provider>`: a training config goes to one provider as a job like any other."""

from litestar import Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from services.gateway.domain.deployment import (
    TARGETS,
    DeploymentResponse,
    DeployRequest,
    deployment,
    offer_for,
    submission,
)
from services.gateway.domain.provider_body import HardwareOptionsResponse, hardware_options
from services.gateway.inbound.http.jobs import job_id_of
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from shared.problems import Rejected


@post("/{target:str}", status_code=OK, guards=[require_json])
async def deploy(
    target: FromPath[str], data: JSONBody[DeployRequest], parts: Parts, principal: Caller
) -> DeploymentResponse:
    """Train at `runpod`, `kaggle`, `hf-spaces` or `lambda`. Ask GET with the `deployment_id` how it goes on."""
    provider = _provider(target)
    view = await parts.providers.one(provider, principal)
    await parts.providers.require_configured(provider, principal)
    offer = offer_for(view.offers, data.gpu_type, data.gpu_count)
    hardware = None if offer is None else offer.hardware
    estimate = await parts.providers.estimate(provider, hardware, principal)
    if data.budget is not None and (estimate.estimated_cost_usd or 0) > data.budget:
        detail = f"it is expected to cost ${estimate.estimated_cost_usd:.2f}, which is above ${data.budget:.2f}"
        raise Rejected("funds_refused", detail, estimated_cost=estimate.estimated_cost_usd, budget=data.budget)
    accepted = await parts.commands.submit(
        submission(data, offer), provider=provider, key=data.idempotency_key, principal=principal
    )
    job = await parts.reads.body(await parts.reads.view(job_id_of(accepted.job_id)))
    return deployment(job, offer, estimate, data.gpu_type)


@get("/{target:str}")
async def get_deployment(
    target: FromPath[str], parts: Parts, principal: Caller, deployment_id: FromQuery[str | None] = None
) -> DeploymentResponse | HardwareOptionsResponse:
    """How a deployment goes on; without `deployment_id`, the machines that the provider has."""
    provider = _provider(target)
    view = await parts.providers.one(provider, principal)
    if deployment_id is None:
        return hardware_options(view)
    job = await parts.reads.body(await parts.reads.view(job_id_of(deployment_id), with_deleted=True))
    if job.provider != provider:
        raise Rejected("job_not_found", f"that job is not at {provider}", job_id=deployment_id[:64])
    attempts = job.metadata["attempts"]
    hardware = attempts[-1]["hardware"] if attempts else None
    estimate = await parts.providers.estimate(provider, hardware, principal)
    return deployment(job, None, estimate, None)


def _provider(target: str) -> str:
    if target not in TARGETS:
        detail = f"nothing can be deployed to {target[:64]!r}; known: {', '.join(TARGETS)}"
        raise Rejected("provider_not_found", detail, known=list(TARGETS))
    return TARGETS[target]


ROUTER = Router("/api/training/deploy", route_handlers=[deploy, get_deployment], tags=["Training"])
