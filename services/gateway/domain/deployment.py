"""`/api/training/deploy`: a training config in the documented form becomes a job at one provider, and back. Pure."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from services.gateway.domain.job_body import JobBody
from services.gateway.domain.provider_body import CostEstimateResponse
from services.gateway.domain.refusals import invalid
from services.gateway.domain.requirements import Requirements
from services.gateway.domain.submission import SubmitJobRequest
from shared.contracts.offers import Offer

TARGETS = {"runpod": "runpod", "kaggle": "kaggle", "hf-spaces": "hf_spaces", "lambda": "lambda"}
"""The last word of the path -> the provider as jobs name it."""
_MAKERS = ("NVIDIA", "GEFORCE", "TESLA", "AMD")
_SECTIONS = ("model", "training", "dataset", "lora", "quantization", "predictions", "evaluation", "dpo")


class DeployRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training config by its sections, or `config`, or `config_name_to_load`; and where it is to run.

    `gpu_type` as people write it (`RTX 4090`, `NVIDIA_RTX_A4000`, `A100 80GB`) or as the provider does.
    """

    model: Any = None
    training: dict[str, Any] | None = None
    dataset: Any = None
    lora: Any = None
    quantization: Any = None
    predictions: Any = None
    evaluation: Any = None
    dpo: Any = None
    config: dict[str, Any] | None = None
    dataloader_config: list[dict[str, Any]] | None = None
    config_name_to_load: str | None = None
    config_name: str | None = None
    tracker_run_name: str | None = None
    gpu_type: str | None = None
    gpu_count: int = 1
    budget: float | None = None
    """In US dollars: refused when the estimate is above it."""
    idempotency_key: str | None = None


class DeploymentCost(msgspec.Struct, frozen=True, kw_only=True):
    """In US dollars. The estimate goes by the time of earlier jobs; None before there are any."""

    estimated_cost: float | None
    cost_per_hour: float | None


class DeploymentResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer. `deployment_id` is the job's id; `pod_id` the provider's own, once it has a machine."""

    deployment_id: str
    pod_id: str | None
    status: str
    gpu_type: str | None
    cost: DeploymentCost


def submission(body: DeployRequest, offer: Offer | None) -> SubmitJobRequest:
    """The job that is asked for, on that offer, or on the GPU by its name. Refuses sections beside a whole config."""
    sections = {name: getattr(body, name) for name in _SECTIONS if getattr(body, name) is not None}
    if sections and body.config is not None:
        raise invalid("config", f"config is given beside {', '.join(sections)}", "Send one of them.")
    return SubmitJobRequest(
        config=sections or body.config,
        dataloader_config=body.dataloader_config,
        config_name_to_load=body.config_name_to_load,
        config_name=body.config_name,
        tracker_run_name=body.tracker_run_name,
        hardware_profile=None if offer is None else offer.hardware,
        idempotency_key=body.idempotency_key,
        requirements=None if offer is not None or body.gpu_type is None else _by_name(body.gpu_type, body.gpu_count),
    )


def _by_name(gpu_type: str, gpu_count: int) -> Requirements:
    return Requirements(gpu="*".join(("", *_words(gpu_type), "")), gpu_count=gpu_count)


def offer_for(offers: Sequence[Offer], gpu_type: str | None, gpu_count: int) -> Offer | None:
    """The cheapest offer with that GPU; None when none is asked for, or none was told yet.

    Refuses a GPU that the provider does not have.
    """
    if gpu_type is None or not offers:
        return None
    wanted = set(_words(gpu_type))
    found = [
        offer
        for offer in offers
        if offer.gpu_count == gpu_count and (wanted <= {*_words(offer.gpu)} or wanted <= {*_words(offer.hardware)})
    ]
    if not found:
        known = ", ".join(sorted({offer.gpu for offer in offers if offer.gpu}))
        raise invalid("gpu_type", f"there is no {gpu_count} x {gpu_type[:64]} here", f"It has: {known}.")
    return min(found, key=lambda offer: (offer.availability == "none", offer.price_micro_usd_per_hour))


def deployment(
    job: JobBody, offer: Offer | None, estimate: CostEstimateResponse, gpu_type: str | None
) -> DeploymentResponse:
    """How the job stands, as a deployment."""
    attempts: list[dict[str, Any]] = job.metadata["attempts"]
    newest = attempts[-1] if attempts else {}
    return DeploymentResponse(
        deployment_id=job.job_id,
        pod_id=newest.get("provider_ref"),
        status=job.status,
        gpu_type=gpu_type or newest.get("hardware") or (offer.gpu if offer else None),
        cost=DeploymentCost(estimated_cost=estimate.estimated_cost_usd, cost_per_hour=estimate.hardware_cost_per_hour),
    )


def _words(text: str) -> list[str]:
    """`NVIDIA_RTX_A4000`, `NVIDIA RTX A4000` and `rtx a4000` are the same words."""
    return [word for word in re.split(r"[^A-Z0-9]+", text.upper()) if word and word not in _MAKERS]
