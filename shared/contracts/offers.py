"""Hardware that can be had at a provider, and what a job asks of it. Read by scheduler, billing, bridge and gateway."""

from typing import Literal

import msgspec

Availability = Literal["none", "low", "medium", "high", "unknown"]

AUTO = "auto"
"""A job that names this provider is placed where it is expected to cost least."""

PROVIDERS: tuple[str, ...] = (
    "local",
    "worker",
    "replicate",
    "runpod",
    "runpod_serverless",
    "lambda",
    "kaggle",
    "huggingface",
    "hf_spaces",
    "skypilot",
)
"""Every provider that Tunewright has an adapter for, as jobs name it."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of machine at one provider, at the price it had when it was quoted."""

    provider: str
    hardware: str
    """The provider's own id, sent back to it as it is."""
    gpu: str
    """What people call it: `H100 80GB`; empty without a GPU."""
    gpu_count: int
    vram_gb: int
    """Of each GPU; 0 = not known."""
    price_micro_usd_per_hour: int
    """Of the whole machine."""
    region: str | None = None
    spot: bool = False
    """The provider may take it away at any moment."""
    availability: Availability = "unknown"
    max_run_s: int | None = None
    """The provider ends every run after so long."""
    labels: dict[str, str] = {}
    """Of an own worker."""


class HardwareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a job needs of its machine. Each member narrows the choice; None or empty does not."""

    hardware: str | None = None
    """Exactly this profile, in the provider's words (`gpu-h100`) or the contract's (`h100-x2`)."""
    gpu: str | None = None
    """A pattern with `*`, held against what people call the GPU, in any case: `*A100*`."""
    gpu_count: int = 1
    min_vram_gb: int | None = None
    """Of each GPU."""
    max_price_micro_usd_per_hour: int | None = None
    """Of the whole machine."""
    regions: list[str] = []
    allow_spot: bool = False
    providers: list[str] = []
    """With provider `auto`: only these."""
    labels: dict[str, str] = {}
    """Of own workers: every label must match; values may hold `*`."""
    max_run_s: int | None = None
    """Each attempt is ended after so long; it goes on elsewhere from its last checkpoint."""
