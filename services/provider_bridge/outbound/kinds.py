"""What the bridge knows of each provider before it has a key: its name, its settings, and how its adapter is made."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.ports import Capabilities, Provider
from shared.clock import Clock
from shared.contracts.offers import Offer
from shared.settings import Secret


class CredentialField(msgspec.Struct, frozen=True, kw_only=True):
    """One secret that a provider wants: its name with us, and the variable of the environment it is known by."""

    name: str
    variable: str
    required: bool = True


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is made of. `settings` are those of `ProviderKind.settings`, already checked."""

    credentials: Mapping[str, Secret]
    settings: Any
    network: NetworkSettings
    installation: str
    """8 hex digits that stand in the name of each of our runs."""
    clock: Clock


class ProviderKind(msgspec.Struct, frozen=True, kw_only=True):
    """One provider, as each adapter module declares it in its constant KIND."""

    name: str
    title: str
    description: str
    credentials: tuple[CredentialField, ...]
    settings: type[msgspec.Struct]
    """Frozen, a default for each member; none of them secret. `api_url` is always one: where its API is."""
    capabilities: Capabilities
    build: Callable[[Materials], Provider]
    listed: tuple[Offer, ...] = ()
    """What it is known to have before anybody could ask it; prices as of the table in its module."""
