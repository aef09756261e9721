"""Which providers there are now, by name and by whose credentials they use."""

from collections.abc import Iterable

from services.provider_bridge.outbound.ports import Provider


class FixedProviders:
    """Providers that stay as they are: those that need neither settings nor keys."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._providers = {provider.name: provider for provider in providers}

    def of(self, name: str, user_id: str | None = None) -> Provider | None:  # noqa: ARG002 - the port's signature
        """The provider of that name, whoever asks."""
        return self._providers.get(name)

    def known(self) -> list[Provider]:
        """All of them."""
        return list(self._providers.values())
