"""Commands that every service answers, whatever it owns. The subject is cmd.<service>.<tag>."""

from shared.contracts.job import Command


class Ping(Command, frozen=True, kw_only=True, tag="ping"):
    """Answers at once: `{"service": str, "version": str, "lag": {durable: events behind the log}}`."""


class RebuildProjections(Command, frozen=True, kw_only=True, tag="rebuild_projections"):
    """Drops and refolds every read model of the service.

    Answers `{"projections": [{"name", "rows", "before_sha256", "after_sha256", "equal"}]}`.
    """


class ListParked(Command, frozen=True, kw_only=True, tag="list_parked"):
    """Messages given up: `{"parked": [{"durable", "position", "type", "stream", "reason", "parked_at"}]}`."""


class ReplayParked(Command, frozen=True, kw_only=True, tag="replay_parked"):
    """Handles one parked message again: `{"replayed": bool, "reason": str | None}`."""

    durable: str
    position: int
