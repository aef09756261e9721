"""Recomputes the hash chains of a log event by event, and names what does not add up. Pure; fed by `verify.py`.

What each kind of fault means:
    changed: the row is not what it was when it was hashed; its own hash is vouched for by a seal or its successor.
    inserted: the row does not match its hash and nothing vouches for it: it was put there past the log's function, or
        changed before anything could vouch for it.
    swapped: the row stands in another's place.
    dropped: a position or a version is missing.
    cut: the end of the log is missing, up to where a seal or the relay has seen it.
    seal_broken: the hashes of a range are not those that were sealed.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import Literal

import msgspec

from shared.eventstore.hashing import NO_HASH, StoredEvent, event_hash, seal_hash

FaultKind = Literal["changed", "inserted", "swapped", "dropped", "cut", "seal_broken"]

_NAMED_ONE_BY_ONE = 100
"""A longer run of missing positions is one fault; more changed rows than this are not compared for swaps."""
_PAYLOAD = ("event_id", "type", "data", "meta", "correlation_id", "recorded_at")
_SWAPS = (("global_position",), ("data",), _PAYLOAD, (*_PAYLOAD, "stream", "stream_version"))


class Fault(msgspec.Struct, kw_only=True):
    """One thing that is wrong: where, and how one can tell."""

    kind: FaultKind
    position: int | None = None
    stream: str | None = None
    stream_version: int | None = None
    detail: str


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """A row of log.seals."""

    from_position: int
    to_position: int
    event_count: int
    hash: bytes


class _Suspect(msgspec.Struct, kw_only=True):
    """An event that does not match its hash, with what it should follow."""

    event: StoredEvent
    previous: bytes
    previous_position: int
    vouched: bool = False


class _Head(msgspec.Struct, kw_only=True):
    """The end of one stream so far."""

    version: int = 0
    hash: bytes = NO_HASH
    position: int = 0
    suspect: _Suspect | None = None
    other_hash: bytes | None = None
    """After a swap: the next event may follow either of the two."""

    def is_followed_by(self, event: StoredEvent) -> bool:
        """Whether the event's hash continues this end."""
        ends = (self.hash,) if self.other_hash is None else (self.hash, self.other_hash)
        return any(event.hash == event_hash(end, event) for end in ends)


class _Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a stream lacks, and the positions between which it must have been."""

    stream: str
    version: int
    after: int
    before: int
    before_version: int


class Auditor:
    """Takes every event in position order, then tells the faults. Memory grows with streams and faults only."""

    def __init__(self, seals: Iterable[Seal], published: int = 0) -> None:
        self.events = 0
        self.position = 0
        self._seals = list(seals)
        self._published = published
        self._seal_number = 0
        self._hashes: list[bytes] = []
        self._heads: dict[str, _Head] = {}
        self._suspects: list[_Suspect] = []
        self._missing: dict[tuple[str, int], _Missing] = {}
        self._absent: list[range] = []
        self._broken: list[range] = []
        self._intact: list[range] = []
        self._faults: list[Fault] = []

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return len(self._heads)

    @property
    def sealed_to(self) -> int:
        """The last position that a seal covers."""
        return self._seals[-1].to_position if self._seals else 0

    def take(self, event: StoredEvent) -> None:
        """The next event of the log."""
        if event.global_position > self.position + 1:
            self._absent.append(range(self.position + 1, event.global_position))
        elif event.global_position <= self.position:
            self._faults.append(_fault("inserted", event, "its position is not above the one before it"))
        self.events += 1
        self.position = event.global_position
        self._close_seals(event.global_position)
        if self._seal_number < len(self._seals):
            self._hashes.append(event.hash)
        self._follow(event)

    def finish(self) -> list[Fault]:
        """Every fault, by position."""
        self._close_seals(self.sealed_to + 1)
        end = max(self.sealed_to, self._published)
        if end > self.position:
            seen_by = "a seal" if self.sealed_to == end else "the relay"
            self._faults.append(
                Fault(
                    kind="cut",
                    position=self.position + 1,
                    detail=f"the log ends at {self.position}, but {seen_by} has seen {end}",
                )
            )
        self._name_suspects()
        self._name_dropped()
        return sorted(self._faults, key=lambda fault: (fault.position or 0, fault.stream or ""))

    def _follow(self, event: StoredEvent) -> None:
        """Holds an event against the end of its stream."""
        head = self._heads.setdefault(event.stream, _Head())
        if event.stream_version <= head.version:
            self._take_misplaced(event, head)
        elif event.stream_version > head.version + 1:
            for version in range(head.version + 1, event.stream_version):
                self._missing[event.stream, version] = _Missing(
                    stream=event.stream,
                    version=version,
                    after=head.position,
                    before=event.global_position,
                    before_version=event.stream_version,
                )
            head.suspect = None
        elif head.is_followed_by(event):
            head.other_hash = None
            if head.suspect is not None:
                head.suspect.vouched = True
            head.suspect = None
        else:
            head.suspect = _Suspect(event=event, previous=head.hash, previous_position=head.position)
            self._suspects.append(head.suspect)
        head.version = max(head.version, event.stream_version)
        head.hash = event.hash
        head.position = event.global_position

    def _take_misplaced(self, event: StoredEvent, head: _Head) -> None:
        missed = self._missing.pop((event.stream, event.stream_version), None)
        head.suspect = None
        head.other_hash = head.hash
        if missed is None:
            self._faults.append(_fault("inserted", event, "its stream has this version already"))
            return
        self._faults.append(_fault("swapped", event, f"it belongs before position {missed.before}"))
        self._faults.append(
            Fault(
                kind="swapped",
                position=missed.before,
                stream=event.stream,
                stream_version=missed.before_version,
                detail=f"it stands before version {event.stream_version} of its stream",
            )
        )

    def _close_seals(self, position: int) -> None:
        """Checks the seals that end before `position`."""
        while self._seal_number < len(self._seals):
            seal = self._seals[self._seal_number]
            if position <= seal.to_position:
                return
            self._check_seal(seal)
            self._hashes = []
            self._seal_number += 1

    def _check_seal(self, seal: Seal) -> None:
        before = self._seals[self._seal_number - 1] if self._seal_number else None
        due = before.to_position + 1 if before else 1
        sealed = range(seal.from_position, seal.to_position + 1)
        expected = seal_hash(before.hash if before else NO_HASH, seal.from_position, seal.to_position, self._hashes)
        if seal.from_position != due:
            detail = f"the seal of positions {due} to {seal.from_position - 1} is missing"
        elif len(self._hashes) != seal.event_count:
            detail = f"{seal.event_count} events were sealed here, {len(self._hashes)} are left"
        elif seal.hash != expected:
            detail = "the hashes here are not those that were sealed"
        else:
            self._intact.append(sealed)
            return
        self._broken.append(sealed)
        where = f"positions {seal.from_position} to {seal.to_position}: "
        self._faults.append(Fault(kind="seal_broken", position=seal.from_position, detail=where + detail))

    def _name_suspects(self) -> None:
        swapped = self._swapped_positions()
        for suspect in self._suspects:
            event = suspect.event
            if event.global_position in swapped:
                detail = f"its content belongs to position {swapped[event.global_position]}"
                self._faults.append(_fault("swapped", event, detail))
            elif suspect.vouched or any(event.global_position in sealed for sealed in self._intact):
                self._faults.append(_fault("changed", event, "it does not match its hash"))
                self._name_rewritten(suspect)
            else:
                detail = "it does not match its hash, and neither a seal nor a later event vouches for that"
                self._faults.append(_fault("inserted", event, detail))

    def _name_rewritten(self, suspect: _Suspect) -> None:
        """Where hashes were exchanged under a seal, the event before a suspect may be the one that was rewritten."""
        if any(suspect.previous_position in sealed for sealed in self._broken):
            self._faults.append(
                Fault(
                    kind="changed",
                    position=suspect.previous_position,
                    stream=suspect.event.stream,
                    stream_version=suspect.event.stream_version - 1,
                    detail="the next event of its stream does not follow from it: it was rewritten with its hash",
                )
            )

    def _swapped_positions(self) -> dict[int, int]:
        """Suspects that match their hashes once they have exchanged something: position -> the other's position."""
        found: dict[int, int] = {}
        if len(self._suspects) > _NAMED_ONE_BY_ONE:
            return found
        for one, other in combinations(self._suspects, 2):
            if any(_match_when_swapped(one, other, fields) for fields in _SWAPS):
                found[one.event.global_position] = other.event.global_position
                found[other.event.global_position] = one.event.global_position
        return found

    def _name_dropped(self) -> None:
        """Missing versions and missing positions are the same events, where only one fits the other."""
        singles = {p for absent in self._absent if len(absent) <= _NAMED_ONE_BY_ONE for p in absent}
        for missing in self._missing.values():
            fitting = [p for p in singles if missing.after < p < missing.before]
            position = fitting[0] if len(fitting) == 1 else None
            singles.discard(position or 0)
            self._faults.append(
                Fault(
                    kind="dropped",
                    position=position,
                    stream=missing.stream,
                    stream_version=missing.version,
                    detail=f"missing between positions {missing.after} and {missing.before}",
                )
            )
        for position in singles:
            self._faults.append(Fault(kind="dropped", position=position, detail="no event has this position"))
        for absent in self._absent:
            if len(absent) > _NAMED_ONE_BY_ONE:
                detail = f"no event has the positions {absent.start} to {absent.stop - 1}"
                self._faults.append(Fault(kind="dropped", position=absent.start, detail=detail))


def _fault(kind: FaultKind, event: StoredEvent, detail: str) -> Fault:
    return Fault(
        kind=kind,
        position=event.global_position,
        stream=event.stream,
        stream_version=event.stream_version,
        detail=detail,
    )


def _match_when_swapped(one: _Suspect, other: _Suspect, fields: tuple[str, ...]) -> bool:
    def with_fields_of(event: StoredEvent, donor: StoredEvent) -> StoredEvent:
        return msgspec.structs.replace(event, **{field: getattr(donor, field) for field in fields})

    def match(this: _Suspect, that: _Suspect) -> bool:
        return event_hash(this.previous, with_fields_of(this.event, that.event)) == this.event.hash

    return match(one, other) and match(other, one)
