"""The scheduler's settings; `Settings` is read from the environment in `__main__` only."""

from services.scheduler.domain.queue_policy import Limits
from shared.contracts.offers import PROVIDERS
from shared.service import CoreSettings


class Settings(CoreSettings, frozen=True, kw_only=True):
    """CoreSettings, how many jobs may hold a slot, and the names of the providers that are offered."""

    scheduler_max_concurrent: int = 5
    scheduler_user_max_concurrent: int = 2
    scheduler_providers: str = ",".join(PROVIDERS)
    """Names, separated by commas."""

    @property
    def limits(self) -> Limits:
        """The two limits as the queue policy takes them."""
        return Limits(in_all=self.scheduler_max_concurrent, per_user=self.scheduler_user_max_concurrent)

    @property
    def providers(self) -> tuple[str, ...]:
        """The offered names, in the order given."""
        return tuple(name.strip() for name in self.scheduler_providers.split(",") if name.strip())
