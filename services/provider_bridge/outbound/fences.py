"""Keeps lower epochs out, as far as one process can.

Most providers know nothing of epochs. In this process no lower epoch acts once a higher one has asked; a start of
another, paused process is told from ours by the epoch in its tag, and ended by the sweep.
"""

from uuid import UUID

from services.provider_bridge.outbound.ports import StaleEpoch, Tag

_KEPT = 10_000


class Fences:
    """The highest epoch that has asked about each attempt."""

    def __init__(self) -> None:
        self._highest: dict[UUID, int] = {}

    def check(self, tag: Tag) -> None:
        """Shuts out lower epochs from here on; raises StaleEpoch for one of them."""
        if tag.epoch < self._highest.get(tag.attempt_id, 0):
            raise StaleEpoch
        self._highest.pop(tag.attempt_id, None)  # the newest stands last
        self._highest[tag.attempt_id] = tag.epoch
        if len(self._highest) > _KEPT:
            self._highest.pop(next(iter(self._highest)))
