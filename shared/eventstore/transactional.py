"""A log that takes part in its caller's transactions: rows and events commit together, or not at all."""

from collections.abc import Sequence
from typing import Protocol

from shared.eventstore.api import Append, EventStore
from shared.eventstore.group_commit import Connection, Outcome


class TransactionalStore(EventStore, Protocol):
    """An EventStore in the same database as a service's own tables."""

    async def append_in(self, connection: Connection, appends: Sequence[Append]) -> list[Outcome]:
        """Appends inside the caller's open transaction; one outcome for each, in order.

        A VersionConflict is returned, not raised. Every other append waits until the transaction ends.
        """
        ...
