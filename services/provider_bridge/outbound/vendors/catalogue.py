"""Every vendor's adapter, in the order in which they are shown."""

from services.provider_bridge.outbound.kinds import ProviderKind
from services.provider_bridge.outbound.vendors import (
    hugging_face,
    hugging_face_spaces,
    kaggle,
    lambda_cloud,
    replicate,
    runpod_pods,
    runpod_serverless,
    skypilot,
)

KINDS: tuple[ProviderKind, ...] = (
    replicate.KIND,
    runpod_pods.KIND,
    runpod_serverless.KIND,
    lambda_cloud.KIND,
    kaggle.KIND,
    hugging_face.KIND,
    hugging_face_spaces.KIND,
    skypilot.KIND,
)
"""Add yours here; docs/providers.md and the provider endpoints are made from it."""


def kind_of(name: str) -> ProviderKind | None:
    """The kind of that name, as jobs name it."""
    return next((kind for kind in KINDS if kind.name == name), None)
