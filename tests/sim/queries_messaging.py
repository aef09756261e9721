"""What the queries of shared/messaging do: inbox, checkpoint and parked rows of one service."""

from collections.abc import Sequence
from uuid import UUID

from shared.messaging.inbox import QUERIES
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "inbox"


@twin(QUERIES, FAMILY)
def try_lock(t: Transaction, durable: str) -> list[Row]:
    """A session lock: free again when the connection ends."""
    holder = t.database.sessions.setdefault(durable, t.session)
    return [{"locked": holder is t.session}]


@twin(QUERIES, FAMILY)
async def ensure_checkpoint(t: Transaction, durable: str) -> None:
    """Gives the durable its row."""
    await t.lock("checkpoint", durable)
    if t.get("checkpoint", durable) is None:
        t.put("checkpoint", durable, {"position": 0})


@twin(QUERIES, FAMILY)
def read_checkpoint(t: Transaction, durable: str) -> list[Row]:
    """The position."""
    row = t.get("checkpoint", durable)
    return [row] if row else []


@twin(QUERIES, FAMILY)
async def lock_checkpoint(t: Transaction, durable: str) -> list[Row]:
    """The position, locked."""
    await t.lock("checkpoint", durable)
    return read_checkpoint(t, durable)


@twin(QUERIES, FAMILY)
async def raise_checkpoint(t: Transaction, durable: str, position: int) -> None:
    """Never lowers it."""
    await t.lock("checkpoint", durable)
    row = t.get("checkpoint", durable)
    if row is not None and row["position"] < position:
        t.put("checkpoint", durable, {"position": position})


@twin(QUERIES, FAMILY)
async def claim_events(t: Transaction, durable: str, ids: Sequence[UUID], positions: Sequence[int]) -> list[Row]:
    """The ids that were not there before."""
    await raise_checkpoint(t, durable, max(positions))
    new = [
        (event_id, place)
        for event_id, place in zip(ids, positions, strict=True)
        if t.get("inbox", (durable, event_id)) is None
    ]
    for event_id, place in new:
        t.put("inbox", (durable, event_id), {"durable": durable, "event_id": event_id, "position": place})
    return [{"event_id": event_id} for event_id, _ in new]


@twin(QUERIES, FAMILY)
def already_handled(t: Transaction, durable: str, ids: Sequence[UUID]) -> list[Row]:
    """Those of these that the inbox holds."""
    return [{"event_id": event_id} for event_id in ids if t.get("inbox", (durable, event_id)) is not None]


@twin(QUERIES, FAMILY)
def prune_inbox(t: Transaction, durable: str, below: int) -> None:
    """Forgets old ids."""
    for row in t.rows("inbox"):
        if row["durable"] == durable and row["position"] < below:
            t.drop("inbox", (durable, row["event_id"]))


@twin(QUERIES, FAMILY)
def park_event(
    t: Transaction, durable: str, position: int, event_id: UUID, type_: str, stream: str, reason: str
) -> None:
    """Remembers what was given up."""
    row = {"durable": durable, "position": position, "event_id": event_id, "type": type_, "stream": stream}
    known = t.get("parked", (durable, position)) or row
    t.put("parked", (durable, position), {**known, "reason": reason, "parked_at": t.now()})
