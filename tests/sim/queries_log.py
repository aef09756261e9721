"""What the relay's and the sealer's queries do: the log's rows, how far they are published, and the seals."""

import msgspec

from shared.contracts.envelope import RecordedEvent
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import encode_meta
from tests.sim.database import Row, Transaction, at_once
from tests.sim.twins import twin

FAMILY = "log"


def as_row(event: RecordedEvent) -> Row:
    """An event as its row."""
    return {**msgspec.structs.asdict(event), "data": bytes(event.data), "meta": encode_meta(event.meta)}


@twin(QUERIES, FAMILY)
def try_lead(t: Transaction) -> list[Row]:
    """A session lock."""
    holder = t.database.sessions.setdefault("relay lead", t.session)
    return [{"leads": holder is t.session}]


@twin(QUERIES, FAMILY)
def store_id(t: Transaction) -> list[Row]:
    """The log's identity."""
    return [{"store_id": at_once(t.database.log.store_id())}]


@twin(QUERIES, FAMILY)
def head(t: Transaction) -> list[Row]:
    """The highest position."""
    return [{"head": at_once(t.database.log.head())}]


@twin(QUERIES, FAMILY)
def read_all(t: Transaction, after: int, up_to: int, limit: int) -> list[Row]:
    """A page of the log."""
    return [as_row(event) for event in at_once(t.database.log.read(after=after, up_to=up_to, limit=limit))]


@twin(QUERIES, FAMILY)
def event_at(t: Transaction, position: int) -> list[Row]:
    """One event's id."""
    found = at_once(t.database.log.read(after=position - 1, up_to=position))
    return [{"event_id": event.event_id} for event in found]


@twin(QUERIES, FAMILY)
def previous_in_category(t: Transaction, category: str, position: int) -> list[Row]:
    """The category's last position before another."""
    found = at_once(t.database.log.read(up_to=position - 1, categories=[category], limit=10**9))
    return [{"position": found[-1].global_position if found else 0}]


@twin(QUERIES, FAMILY)
def published_position(t: Transaction) -> list[Row]:
    """As it was last said."""
    row = t.get("relay_checkpoint", 1)
    return [row] if row else []


@twin(QUERIES, FAMILY)
def remember_published(t: Transaction, position: int) -> None:
    """Everything up to here is in JetStream."""
    t.put("relay_checkpoint", 1, {"position": position})


@twin(QUERIES, FAMILY)
def last_seal(t: Transaction) -> list[Row]:
    """Where the sealed part ends."""
    seals = list(t.rows("seals"))
    return [{"to_position": seals[-1]["to_position"], "hash": seals[-1]["hash"]}] if seals else []


@twin(QUERIES, FAMILY)
def hashes_after(t: Transaction, position: int, limit: int) -> list[Row]:
    """The next events' hashes."""
    found: list[RecordedEvent] = at_once(t.database.log.read(after=position, limit=limit))
    return [{"global_position": event.global_position, "hash": event.hash} for event in found]


@twin(QUERIES, FAMILY)
def add_seal(t: Transaction, first: int, last: int, count: int, hash_: bytes) -> None:
    """Seals a range."""
    t.put("seals", last, {"from_position": first, "to_position": last, "event_count": count, "hash": hash_})
