"""What a body asks of the machine reaches the scheduler as it was meant, and what no machine could be is refused."""

from typing import Any

import pytest

from services.gateway.domain.requirements import Requirements, hardware_request
from services.gateway.domain.submission import SubmitJobRequest, request_digest
from shared.contracts.offers import HardwareRequest
from shared.problems import Rejected


def test_nothing_asked_is_no_request() -> None:
    assert hardware_request(None, None, "local") is None


def test_the_documented_profile_and_the_requirements_say_the_same() -> None:
    by_profile = hardware_request("h100-x2", None, "replicate")
    assert by_profile == HardwareRequest(hardware="h100-x2")
    assert hardware_request("h100-x2", Requirements(hardware="h100-x2"), "replicate") == by_profile


def test_every_member_is_handed_on_and_dollars_become_micro_dollars() -> None:
    asked = Requirements(
        gpu="*A100*",
        gpu_count=2,
        min_vram_gb=40,
        max_price_usd_per_hour=3.5,
        regions=["eu"],
        allow_spot=True,
        providers=["runpod", "lambda"],
        labels={"room": "b*"},
        max_run_s=3600,
    )
    assert hardware_request(None, asked, "auto") == HardwareRequest(
        gpu="*A100*",
        gpu_count=2,
        min_vram_gb=40,
        max_price_micro_usd_per_hour=3_500_000,
        regions=["eu"],
        allow_spot=True,
        providers=["runpod", "lambda"],
        labels={"room": "b*"},
        max_run_s=3600,
    )


@pytest.mark.parametrize(
    ("asked", "provider", "field"),
    [
        ({"gpu_count": 0}, "auto", "requirements.gpu_count"),
        ({"max_price_usd_per_hour": -1}, "auto", "requirements.max_price_usd_per_hour"),
        ({"providers": ["nobody"]}, "auto", "requirements.providers"),
        ({"providers": ["runpod"]}, "lambda", "requirements.providers"),
        ({"hardware": "l40s"}, "replicate", "hardware_profile"),
    ],
)
def test_what_no_machine_could_be_is_refused_by_its_field(asked: dict[str, Any], provider: str, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        hardware_request("h100" if "hardware" in asked else None, Requirements(**asked), provider)
    assert refused.value.fields["errors"][0]["field"] == field


def test_a_key_given_before_there_were_requirements_still_fits() -> None:
    body = SubmitJobRequest(config={"a": 1})
    assert request_digest(body, "local") != request_digest(
        SubmitJobRequest(config={"a": 1}, requirements=Requirements(gpu="*")), "local"
    )
