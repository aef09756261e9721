"""Lambda's answers as far as we read them, and what its error codes mean to us."""

import re
from collections.abc import Iterable

import msgspec

from services.provider_bridge.outbound.egress import Forbidden, VendorRefused
from services.provider_bridge.outbound.ports import CredentialRefused, NoCapacity, NoFunds, StartRefused
from services.provider_bridge.outbound.vendors.machines import HIDDEN
from shared.contracts.offers import Offer
from shared.problems import Unavailable

_NO_CAPACITY = frozenset({"instance-operations/launch/insufficient-capacity"})
_NO_FUNDS = frozenset({"global/quota-exceeded", "global/account-inactive", "global/invalid-address"})
_NO_KEY = frozenset({"global/invalid-api-key"})
_OUTAGE = frozenset({"global/unknown", "global/internal-error"})
_GPU = re.compile(r"(?P<name>.+?) \((?P<vram>[0-9]+) GB(?: (?P<form>[^)]+))?\)")
"""`H100 (80 GB SXM5)`."""


class RegionShown(msgspec.Struct):
    """A region by its name, such as `us-east-1`."""

    name: str


class SpecsShown(msgspec.Struct):
    """What is in a machine."""

    gpus: int = 0


class TypeShown(msgspec.Struct):
    """One type of machine."""

    name: str = ""
    gpu_description: str | None = None
    price_cents_per_hour: float = 0
    specs: SpecsShown = msgspec.field(default_factory=SpecsShown)


class TypeOfferedShown(msgspec.Struct):
    """A type, and where it can be had now."""

    instance_type: TypeShown
    regions_with_capacity_available: list[RegionShown] = msgspec.field(default_factory=list[RegionShown])


class TypesShown(msgspec.Struct):
    """The answer of `/instance-types`, by name."""

    data: dict[str, TypeOfferedShown]


class TagShown(msgspec.Struct):
    """One tag."""

    key: str
    value: str = ""


class InstanceShown(msgspec.Struct):
    """One machine. Its `jupyter_url`, a secret, is not read."""

    id: str
    name: str | None = None
    status: str = ""
    instance_type: TypeShown | None = None
    tags: list[TagShown] | None = None

    @property
    def price_cents(self) -> float:
        """Cents per hour."""
        return self.instance_type.price_cents_per_hour if self.instance_type is not None else 0


class InstancesShown(msgspec.Struct):
    """The answer of `/instances`."""

    data: list[InstanceShown]


class OneShown(msgspec.Struct):
    """The answer of `/instances/{id}`."""

    data: InstanceShown


class IdsShown(msgspec.Struct):
    """The machines that were launched."""

    instance_ids: list[str]


class LaunchedShown(msgspec.Struct):
    """The answer of a launch."""

    data: IdsShown


class KeyShown(msgspec.Struct):
    """An SSH key."""

    name: str


class KeysShown(msgspec.Struct):
    """The answer of `/ssh-keys`."""

    data: list[KeyShown]


class FaultShown(msgspec.Struct):
    """An error: only its code is to be branched on."""

    code: str = ""
    message: str = ""
    suggestion: str | None = None


class RefusalShown(msgspec.Struct):
    """The body of an error."""

    error: FaultShown = msgspec.field(default_factory=FaultShown)


def refusal_of(refusal: VendorRefused | Forbidden, token: str | None = None) -> StartRefused | Unavailable:
    """What a refused call means, by its code alone: capacity, quota and bad input share a status.

    The run's token is taken out, should Lambda repeat what it was sent.
    """
    try:
        fault = msgspec.convert(refusal.content, RefusalShown).error
    except msgspec.ValidationError:
        fault = FaultShown()
    said = fault.message or str(refusal)
    said = said.replace(token, HIDDEN) if token else said
    code = fault.code
    if code in _NO_CAPACITY:
        return NoCapacity(f"Lambda has no such machine now: {said}")
    if code in _NO_FUNDS:
        return NoFunds(f"Lambda starts nothing more for this account: {said}", fault.suggestion)
    if code in _NO_KEY or (not code and isinstance(refusal, Forbidden)):
        return CredentialRefused(f"Lambda refuses our key: {said}", "Check the provider's key.")
    if code in _OUTAGE or code.startswith("provider/"):
        return Unavailable(f"Lambda is in trouble ({code}): {said}")
    advice = fault.suggestion or "Check type, region, image and SSH key in the settings of the provider `lambda`."
    return StartRefused(f"Lambda refuses the machine ({code or 'no code'}): {said}", advice)


def offers(provider: str, shown: Iterable[TypeOfferedShown]) -> list[Offer]:
    """One offer for each type with GPUs and region that has it; one without a region where none has."""
    return [
        Offer(
            provider=provider,
            hardware=each.instance_type.name,
            gpu=_called(each.instance_type),
            gpu_count=each.instance_type.specs.gpus,
            vram_gb=_vram_gb(each.instance_type),
            price_micro_usd_per_hour=round(each.instance_type.price_cents_per_hour * 10_000),
            region=region,
            availability="none" if region is None else "medium",
        )
        for each in shown
        if each.instance_type.specs.gpus > 0
        for region in [place.name for place in each.regions_with_capacity_available] or [None]
    ]


def _called(kind: TypeShown) -> str:
    text = kind.gpu_description or kind.name
    found = _GPU.fullmatch(text)
    return f"{found['name']} {found['vram']}GB {found['form'] or ''}".strip() if found else text


def _vram_gb(kind: TypeShown) -> int:
    found = _GPU.fullmatch(kind.gpu_description or "")
    return int(found["vram"]) if found else 0
