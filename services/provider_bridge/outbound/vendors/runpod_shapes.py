"""RunPod's answers as far as we read them: every member may be missing, further ones are ignored."""

import http
import re

import msgspec

from services.provider_bridge.outbound.egress import VendorRefused
from services.provider_bridge.outbound.ports import NoCapacity, StartRefused
from services.provider_bridge.outbound.vendors.machines import HIDDEN

_NO_CAPACITY = re.compile(
    r"no longer any instances|no (machine|gpu|instance|host)s?\b|capacity|(out of|no) stock|could not be placed"
    r"|not enough( \S+){0,2} (gpu|machine|instance|resource)|not have the resources"
    r"|(gpu|machine|instance|host)s?( \S+){0,4} (un|not )available",
    re.IGNORECASE,
)
"""Want of machines has no code, only a sentence (providers.md §3.2)."""


class PodShown(msgspec.Struct, rename="camel"):
    """A pod as RunPod shows it, without its environment: the run's token stands there."""

    id: str
    name: str = ""
    status: str = ""
    cost: float | None = None
    created_at: str | None = None


class PodsShown(msgspec.Struct):
    """The answer of `/v2/pods`."""

    pods: list[PodShown]


class BillShown(msgspec.Struct, rename="camel"):
    """What one pod cost in one bucket of time, in USD."""

    end_time: str | None = None
    gpu_amount: float = 0.0


class BillsShown(msgspec.Struct):
    """The answer of `/v2/billing/pods`."""

    records: list[BillShown]


class BalanceShown(msgspec.Struct, rename="camel"):
    """The answer of `/v2/billing/balance`."""

    balance_amount: float
    billing_mode: str = "PREPAID"


class AccountShown(msgspec.Struct):
    """The answer of `/v2/account`."""

    id: str
    email: str | None = None


class LineShown(msgspec.Struct):
    """One event of a pod's log."""

    line: str


class ProblemShown(msgspec.Struct):
    """RunPod's error: a sentence, and each fault of a body that is not as documented."""

    detail: str = ""
    errors: list[str] = msgspec.field(default_factory=list[str])


def start_refused(refusal: VendorRefused, token: str) -> StartRefused:
    """What a refused create means: want of machines, or a fault of the order that stays one.

    The run's token is taken out, should RunPod repeat what it was sent.
    """
    try:
        problem = msgspec.convert(refusal.content, ProblemShown)
    except msgspec.ValidationError:
        problem = ProblemShown()
    detail = " ".join([problem.detail or refusal.excerpt, *problem.errors]).replace(token, HIDDEN)
    if refusal.status == http.HTTPStatus.BAD_REQUEST and _NO_CAPACITY.search(detail):
        return NoCapacity(f"RunPod has no such machine now: {detail}")
    return StartRefused(
        f"RunPod refuses the pod ({refusal.status}): {detail}",
        "Check image, GPU, data centres and volume in the settings of the provider `runpod`.",
    )


def line_of(data: str) -> str:
    """The line in an event of a pod's log."""
    try:
        return msgspec.json.decode(data, type=LineShown).line
    except msgspec.DecodeError:  # of another shape too: better its raw text than nothing
        return data
